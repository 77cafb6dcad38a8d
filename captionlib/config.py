"""Settings of a captioner as frozen dataclasses; the contents of a checkpoint's `config.json`.

Defaults are defined only here. `from_dict` rejects unknown keys, so that a misspelt setting or a checkpoint of a later
version causes an error instead of a wrong result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from captionlib.errors import UserError
from captionlib.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, POSITIVE, at_least, check_ranges

SquareMode = Literal["squash", "center_crop", "pad"]
FeatureKind = Literal["grid", "pooled", "logits"]
EncoderKind = Literal["efficientnet_lite", "torchvision", "timm", "vectors"]
EngineKind = Literal["auto", "int8", "openvino", "torch", "compiled"]  # see `captionlib.engines.build`
DecoderKind = Literal["lstm_init", "lstm_attention", "lstm_adaptive", "transformer"]
AttentionKind = Literal["additive", "dot", "scaled_dot", "general", "multi_head"]

T = TypeVar("T")


class BatchSize(NamedTuple):
    """Default number of images per batch, by device."""

    cpu: int
    gpu: int


CAPTION_BATCH = BatchSize(cpu=32, gpu=512)
"""Of the captioner of a checkpoint."""
FEATURE_BATCH = BatchSize(cpu=32, gpu=256)
"""Of an encoder by itself: it may be much larger than those of captioners."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an upright RGB image is converted to the encoder's input. It belongs to the weights of the encoder."""

    size: int = 224
    """Side of the square input, in pixels."""
    square: SquareMode = "squash"
    """How an image becomes square: scale both sides (stretch), crop the centre, or pad with the mean colour."""
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    """Subtracted from each channel's value in [0, 255]."""
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    """Then each channel is divided by this value."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"preprocessing.size must be at least 1 pixel, got {self.size}")
        if min(self.std) <= 0:
            raise UserError(f"preprocessing.std must be positive, got {self.std}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The network that turns pixels into features, and which of its outputs are used."""

    kind: EncoderKind = "efficientnet_lite"
    """Library of the network; `vectors` means ready-made features without a network."""
    name: str = "efficientnet_lite0"
    """Name of the architecture in its library, such as `resnet50` or `efficientnet_lite0`."""
    features: FeatureKind = "grid"
    """`grid`: (B, N, D), the last stage's positions; `pooled`: (B, 1, D); `logits`: (B, 1, classes)."""
    feature_dim: int = 1280
    """Feature width D, determined when an encoder is built by name."""
    num_positions: int = 49
    """Number of positions N."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        check_ranges(self, "encoder.", feature_dim=at_least(1), num_positions=at_least(1))


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The network that turns features into words."""

    kind: DecoderKind = "lstm_attention"
    attention: AttentionKind = "additive"
    """Attention over the features (only for `lstm_attention` and `lstm_adaptive`)."""
    projection_dim: int = 512
    """Features are first projected to this width and layer-normalised; 0 uses them unchanged."""
    hidden_dim: int = 512
    """Width of the LSTM state or of the transformer."""
    embedding_dim: int = 300
    """Width of the word embeddings (LSTM decoders)."""
    attention_dim: int = 512
    """Width of the common space of query and keys in additive attention."""
    num_heads: int = 8
    """Heads of multi-head attention and of the transformer."""
    num_layers: int = 2
    """Layers of the transformer."""
    dropout: float = 0.5
    tie_weights: bool = True
    """Share the word embeddings between input and output layer (Press & Wolf 2017)."""
    gate: bool = True
    """Scale the context by a gate computed from the state (Xu et al. 2015, section 4.2.1)."""
    max_tokens: int = 40
    """Longest caption that the decoder can represent, `<eos>` included (transformer positions)."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "decoder.",
            dropout=BELOW_ONE,
            projection_dim=NOT_NEGATIVE,
            hidden_dim=at_least(1),
            embedding_dim=at_least(1),
            attention_dim=at_least(1),
            num_heads=at_least(1),
            num_layers=at_least(1),
            max_tokens=at_least(1),
        )


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """The network that predicts the words of an image, see `captionlib.word_detector`."""

    hidden_dim: int = 512
    """Width of the hidden layer."""
    dropout: float = 0.3
    """Dropout of the pooled features and of the hidden layer in training."""

    def __post_init__(self) -> None:
        check_ranges(self, "detector.", hidden_dim=at_least(1), dropout=BELOW_ONE)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How captions are generated. Two runs with the same settings give the same captions."""

    method: Literal["greedy", "sample", "beam"] = "beam"
    beam_width: int = 3
    num_captions: int = 1
    """Number of captions per image: the best of the beam, or independent samples."""
    max_tokens: int = 24
    """Longest caption in words."""
    min_tokens: int = 0
    """`<eos>` is forbidden before this number of words."""
    length_penalty: float = 0.0
    """Hypotheses are ranked by log-probability / length ** length_penalty."""
    no_repeat_ngram: int = 0
    """No n-gram of this order occurs twice in a caption; 0 disables this."""
    allow_unk: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """Sample from the k most probable words; 0 means all."""
    top_p: float = 1.0
    """Sample from the smallest set of words whose total probability reaches this value (Holtzman et al. 2020)."""
    diversity_groups: int = 1
    """Number of groups of diverse beam search (Vijayakumar et al. 2018); must divide `beam_width`."""
    diversity_strength: float = 0.5
    detector_weight: float = 0.0
    """The captions of a beam are re-ranked: this weight times the mean log-probability of a caption's content words in
    the word detector is added to its score. 0 disables this, and is for checkpoints without a word detector (see
    `jobs.train_detector`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("greedy", "sample", "beam"):
            raise UserError(f"search.method must be greedy, sample or beam, got {self.method!r}")
        check_ranges(
            self,
            "search.",
            beam_width=at_least(1),
            num_captions=at_least(1),
            max_tokens=at_least(1),
            diversity_groups=at_least(1),
            min_tokens=NOT_NEGATIVE,
            no_repeat_ngram=NOT_NEGATIVE,
            top_k=NOT_NEGATIVE,
            seed=NOT_NEGATIVE,
            length_penalty=NOT_NEGATIVE,
            detector_weight=NOT_NEGATIVE,
            temperature=POSITIVE,
            top_p=ABOVE_ZERO,
        )
        if self.min_tokens > self.max_tokens:
            raise UserError(f"search.min_tokens {self.min_tokens} exceeds max_tokens {self.max_tokens}")
        if self.method == "greedy" and self.num_captions > 1:
            raise UserError(
                f"greedy search has one caption per image, {self.num_captions} were asked for: use beam or sample"
            )
        if self.method == "beam" and self.num_captions > self.beam_width:
            raise UserError(
                f"search.num_captions {self.num_captions} exceeds beam_width {self.beam_width}: widen the beam"
            )
        if self.beam_width % self.diversity_groups:
            raise UserError(f"search.diversity_groups {self.diversity_groups} must divide beam_width {self.beam_width}")

    def unused(self) -> dict[str, str]:
        """Return the names of settings that have no effect on the captions, each with the search that ignores it."""
        kind = {"greedy": "greedy search", "sample": "sampling", "beam": "beam search"}[self.method]
        beam = ("beam_width", "diversity_groups", "diversity_strength", "detector_weight")
        sampling = ("temperature", "top_k", "top_p", "seed")
        if self.method == "beam":
            found = dict.fromkeys(sampling, kind)
            return found if self.diversity_groups > 1 else found | {"diversity_strength": f"{kind} in one group"}
        found = dict.fromkeys((*beam, *(sampling if self.method == "greedy" else ())), kind)
        # A single caption is not ranked; samples are, by their length-normalised log-probability.
        return found if self.num_captions > 1 else found | {"length_penalty": f"{kind} of one caption"}

    @property
    def reranks(self) -> bool:
        """Whether captions are re-ranked by a word detector."""
        return self.method == "beam" and self.detector_weight > 0

    def check_detector(self, *, exists: bool) -> None:
        """Check that there is a word detector if this search needs one.

        Raises:
            UserError: there is none.
        """
        if self.reranks and not exists:
            raise UserError(
                f"search.detector_weight {self.detector_weight} re-ranks captions by a word detector, and this "
                "captioner has none: set it to 0, or add one with python -m jobs.train_detector"
            )

    def effective(self) -> SearchConfig:
        """Return the same search with unused settings at their defaults, so that equal searches compare equal."""
        defaults: dict[str, Any] = {known.name: known.default for known in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: defaults[name] for name in self.unused()})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All settings of a captioner except its weights and its vocabulary."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    detector: DetectorConfig | None = None
    """The word detector; None if the captioner has none."""


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to dicts, lists and numbers that JSON can represent."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """Convert the values of a file to a config dataclass; the inverse of `to_dict`.

    Args:
        where: prefix of the names in error messages, such as `model.`.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or range; the message names it.
    """
    place = where.rstrip(".: ") or cls.__name__
    if not isinstance(data, dict):
        raise UserError(f"{place}: expected a group of settings, got {data!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(map(repr, set(data) - set(hints)))
    if unknown:
        raise UserError(f"{place}: unknown setting {', '.join(unknown)}; known: {', '.join(sorted(hints))}")
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in data]  # type: ignore[arg-type]
    if missing:
        raise UserError(f"{place}: {', '.join(missing)} must be set")
    return cls(**{name: _convert(hints[name], value, f"{where}{name}") for name, value in data.items()})


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, place: str) -> Any:
    """Convert a JSON value to the type that the dataclass declares."""
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{place}.")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise UserError(f"{place}: {value!r} is none of {', '.join(map(str, options))}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in options:
            with contextlib.suppress(ValueError):
                return _convert(option, value, place)
        raise UserError(f"{place}: expected {hint}, got {value!r}")
    if origin is tuple:
        members = options[:1] * len(value) if isinstance(value, (list, tuple)) and options[-1] is ... else options
        if not isinstance(value, (list, tuple)) or len(value) != len(members):
            raise UserError(f"{place}: expected a list of {len(members)} values, got {value!r}")
        return tuple(
            _convert(member, item, f"{place}[{i}]") for i, (member, item) in enumerate(zip(members, value, strict=True))
        )
    if hint is float and type(value) is int:
        value = float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise UserError(f"{place}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{place}: expected a finite number, got {value}")
    return value
