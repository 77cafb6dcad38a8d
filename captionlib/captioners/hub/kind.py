"""The row of the zoo for models of the Hugging Face hub: examined without their weights, and loaded elsewhere."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captionlib.captioners.base import Needs
from captionlib.captioners.hub import source as sources
from captionlib.captioners.hub.source import ModelSource
from captionlib.captioners.options import MAX_SIDE, CaptionerOptions
from captionlib.captioners.zoo import Kind, refuse
from captionlib.config import SearchConfig
from captionlib.errors import UserError
from captionlib.images.transforms import ImageTransform, MaxSide

if TYPE_CHECKING:
    from captionlib.captioners.hub.families.base import Family
    from captionlib.captioners.hub.loaded import HubModel

NOUN = "a model of the Hugging Face hub"
_CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_UNKNOWN_GIB = 8.0


@dataclass(frozen=True, kw_only=True)
class OpenHubModel:
    """A model before its weights are loaded. See `captionlib.captioners.base.OpenCaptioner`."""

    source: ModelSource
    search: SearchConfig
    options: CaptionerOptions
    prompt: str | None
    transform: ImageTransform
    needs: Needs

    @property
    def name(self) -> str:
        """Name with the commit, such as `hf:Salesforce/blip-image-captioning-base@82a37760796d`."""
        return str(self.source)

    @property
    def fingerprint(self) -> str:
        """See `ModelSource`."""
        return self.source.fingerprint

    @property
    def settings(self) -> dict[str, Any]:
        """Prompts and everything else that determines the captions."""
        named = ("system_prompt", "repetition_penalty", "dtype", "quantization", "first_sentence")
        values: dict[str, Any] = {"prompt": self.prompt} | {name: getattr(self.options, name) for name in named}
        if isinstance(self.transform, MaxSide):
            values["max_side"] = self.transform.max_side
        return values

    def arithmetic(self, *, gpu: bool) -> str:
        """Return the type of the weights: the model's own on a GPU, float32 on a CPU, or the one that was asked for."""
        dtype = self.options.dtype
        if dtype == "auto":
            return "the model's own type in PyTorch" if gpu else "float32 in PyTorch"
        return f"{dtype} in PyTorch"

    @property
    def has_confidence(self) -> bool:
        """False: these models are not calibrated."""
        return False

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that run the model."""
        return ("transformers", "accelerate", "torchvision")

    def load(self, *, batch_size: int | None, num_threads: int) -> HubModel:
        """Download the weights if this machine does not have them, and load them."""
        from captionlib.captioners.hub.loaded import HubModel

        folder = self.source.all_files()
        return HubModel(
            folder,
            _family(self.source, folder, self.options),
            self.search,
            self.options,
            prompt=self.prompt,
            squares=self.transform.side is not None,
            batch_size=batch_size,
            num_threads=num_threads,
        )


def _default_search(name: str, options: CaptionerOptions) -> SearchConfig:
    """Return greedy search, or the beam width of the model's own generation settings."""
    try:
        source = sources.find(name, options.revision, hash_files=False)
        folder = source.small_files()
        family = _family(source, folder, options)
    except (UserError, ModuleNotFoundError):
        return SearchConfig(method="greedy")
    own = sources.read_json(folder, "generation_config.json")
    width = _number(own.get("num_beams"), 1)
    longest = _number(own.get("max_new_tokens") or own.get("max_length"), family.max_tokens)
    return SearchConfig(
        method="beam" if width > 1 else "greedy",
        beam_width=width if width > 1 else SearchConfig().beam_width,
        max_tokens=min(longest, 4 * family.max_tokens),  # some models state thousands, far longer than any caption
        length_penalty=float(own.get("length_penalty") or 1.0) if width > 1 else 0.0,
        no_repeat_ngram=_number(own.get("no_repeat_ngram_size"), 0),
    )


def _open(name: str, search: SearchConfig, options: CaptionerOptions) -> OpenHubModel:
    source = sources.find(name, options.revision)
    folder = source.small_files()
    family = _family(source, folder, options)
    refuse(
        search,
        NOUN,
        diversity_groups="transformers has no diverse beam search; use sample for captions that differ",
        allow_unk="such models have no unknown word",
        detector_weight="such models have no word detector",
    )
    prompt = options.read_prompt()
    if prompt is not None and not family.takes_prompt:
        raise UserError(f"{source} is {family.noun}, which takes no prompt: leave out --prompt")
    if options.system_prompt is not None and not family.takes_system_prompt:
        raise UserError(f"{source} is {family.noun}, which takes no system prompt: leave out --system-prompt")
    prompt = family.default_prompt if prompt is None else prompt
    family.check_prompt(prompt)
    options = dataclasses.replace(options, prompt_file=None, prompt=None)
    return OpenHubModel(
        source=source,
        search=search,
        options=options,
        prompt=prompt,
        transform=_transform(source, folder, family, options),
        needs=Needs(memory_gib=_memory_gib(source, folder, options)),
    )


def _family(source: ModelSource, folder: Path, options: CaptionerOptions) -> Family:
    """Return the family of a model. Raises UserError if it is unknown, or if the model needs its own code."""
    from transformers import CONFIG_MAPPING

    from captionlib.captioners.hub.families import FAMILIES, family_of

    config = sources.read_json(folder, sources.CONFIG)
    kind = str(config.get("model_type"))
    has_template = any((folder / name).is_file() for name in _CHAT_TEMPLATES) or "chat_template" in sources.read_json(
        folder, "tokenizer_config.json"
    )
    family = family_of(kind, has_chat_template=has_template)
    if kind not in CONFIG_MAPPING and not options.trust_remote_code:
        if "auto_map" in config:
            raise UserError(
                f"{source} brings Python code of its own, which transformers does not know: read it, and if you trust "
                "it give --trust-remote-code"
            )
        raise UserError(f"{source} is of the type {kind}, which this version of transformers does not know")
    if family is None:
        raise UserError(
            f"{source} is of the type {kind}, which is not known to write captions: it has no chat template, and is "
            f"none of {', '.join(FAMILIES)}"
        )
    return family


def _transform(source: ModelSource, folder: Path, family: Family, options: CaptionerOptions) -> ImageTransform:
    """Return the transform: the squares of the processor if it makes squares, otherwise RGB of a limited size."""
    from captionlib.captioners.hub.loaded import quieten_transformers
    from captionlib.captioners.hub.pixels import take_apart

    quieten_transformers()
    try:
        processor = family.load_processor(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # processors raise different exceptions for missing or damaged files
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"the processor of {source} cannot be loaded: {type(error).__name__}: {first}") from error
    halves = take_apart(processor.image_processor)
    if halves is None:
        return MaxSide(options.max_side or MAX_SIDE)
    if options.max_side is not None:
        raise UserError(
            f"{source} looks at squares of {halves.transform.side} pixels, whatever an image has: leave out --max-side"
        )
    return halves.transform


def _memory_gib(source: ModelSource, folder: Path, options: CaptionerOptions) -> float:
    """Estimate the memory of a copy on a CPU: the weights in their type, and half as much for activations."""
    if source.weights_bytes is None:
        return _UNKNOWN_GIB
    config = sources.read_json(folder, sources.CONFIG)
    stored_bytes = 2 if str(config.get("dtype") or config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    used_bytes = 4 if options.dtype in ("auto", "float32") else 2
    return 1.0 + 1.5 * source.weights_bytes * used_bytes / stored_bytes / 2**30


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


KIND = Kind(
    noun=NOUN,
    honours=frozenset(
        {
            "revision", "prompt", "prompt_file", "system_prompt", "max_new_tokens", "repetition_penalty",
            "first_sentence", "dtype", "quantization", "max_side", "trust_remote_code",
        }
    ),
    default_search=_default_search,
    open=_open,
)  # fmt: skip
