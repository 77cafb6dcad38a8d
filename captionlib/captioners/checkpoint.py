"""Captioners trained by this project: checkpoints in a folder or at a URL.

Shapes: B images, S side of the square input.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlib.captioners.base import ANY_MACHINE, NOT_FINITE, Answer, Needs, Stages
from captionlib.captioners.options import CaptionerOptions
from captionlib.captioners.zoo import Kind
from captionlib.config import CAPTION_BATCH, EngineKind, SearchConfig, from_dict
from captionlib.engines.arithmetic import arithmetic
from captionlib.errors import UserError
from captionlib.images.transforms import EncoderSquare

if TYPE_CHECKING:
    from captionlib.captioners.predictor import Predictor

NOUN = "a checkpoint of this project"
_HUB_NAME = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """A checkpoint before its weights are loaded. See `captionlib.captioners.base.OpenCaptioner`."""

    name: str
    fingerprint: str
    search: SearchConfig
    source: str
    """Path or URL that `captionlib.checkpoints.resolve_checkpoint` accepts on every machine."""
    engine: EngineKind
    transform: EncoderSquare
    has_int8: bool
    """Whether it has an encoder in 8-bit integers."""
    has_confidence: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """None: model and search determine the captions, and so does `arithmetic`."""
        return {}

    def arithmetic(self, *, gpu: bool) -> str:
        """Return the arithmetic of the encoder's engine."""
        return arithmetic(self.engine, gpu=gpu, has_int8=self.has_int8)

    @property
    def needs(self) -> Needs:
        """A GPU, or any number of CPUs."""
        return ANY_MACHINE

    @property
    def packages(self) -> tuple[str, ...]:
        """No packages other than those that every run records."""
        return ()

    def load(self, *, batch_size: int | None, num_threads: int) -> LoadedCheckpoint:
        """Load the checkpoint."""
        from captionlib.captioners.predictor import Predictor
        from captionlib.checkpoints import check_checkpoint_visible

        check_checkpoint_visible(self.source)
        predictor = Predictor.from_checkpoint(self.source, num_threads=num_threads, engine=self.engine)
        default = CAPTION_BATCH.gpu if predictor.device.type == "cuda" else CAPTION_BATCH.cpu
        return LoadedCheckpoint(predictor, self.search, batch_size or default)


class LoadedCheckpoint:
    """A predictor with its search. See `captionlib.captioners.base.LoadedCaptioner`."""

    def __init__(self, predictor: Predictor, search: SearchConfig, batch_size: int) -> None:
        self.predictor, self.search, self.batch_size = predictor, search, batch_size
        self.overlaps = predictor.device.type == "cuda"

    def stages(self) -> Stages:
        """Return the encoder in its engine, and the search of the decoder."""
        import torch

        predictor, engine = self.predictor, self.predictor.engine
        assert engine is not None, "a checkpoint for images"

        def encode(pixels: np.ndarray) -> torch.Tensor:
            features = engine(pixels)
            if features.is_cuda:
                torch.cuda.synchronize()  # the engine returns before the GPU is done
            return features

        def search(features: torch.Tensor) -> object:
            return predictor.captioner.caption_features(features.to(predictor.device), self.search)

        return Stages(engine.name, encode, search)

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Caption pixels, uint8 (B, S, S, 3), in batches."""
        pixels = np.asarray(images)
        answers: list[Answer] = []
        for start in range(0, len(pixels), self.batch_size):
            batch = slice(start, start + self.batch_size)
            for captions in self.predictor.caption_pixels(pixels[batch], self.search, image_ids[batch]):
                # If the log-probability is NaN or -inf, the words are meaningless.
                finite = [c for c in captions if c.log_prob is not None and math.isfinite(c.log_prob)]
                answers.append(finite or NOT_FINITE)
        return answers


def _default_search(model: str, options: CaptionerOptions) -> SearchConfig:
    if model == "default":
        folder = Path(__file__).parent.parent / "pretrained" / "default"
    elif "://" in model:
        from captionlib.checkpoints import CheckpointError, resolve_checkpoint

        try:
            folder = resolve_checkpoint(model)
        except CheckpointError:
            return SearchConfig()
    else:
        folder = Path(model).expanduser()
    # The file is read directly, because captionlib.checkpoints would make --help slower.
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return from_dict(SearchConfig, stored["search"])
    except (OSError, ValueError, KeyError, TypeError):
        return SearchConfig()


def _open(model: str, search: SearchConfig, options: CaptionerOptions) -> OpenCheckpoint:
    from captionlib.checkpoints import (
        INT8_ENCODER,
        check_checkpoint,
        checkpoint_fingerprint,
        read_config,
        resolve_checkpoint,
    )

    _check_kind(model)
    directory = resolve_checkpoint(model)
    check_checkpoint(directory)
    config = read_config(directory)
    encoder = config.model.encoder
    if encoder.kind == "vectors":
        raise UserError(
            f"the checkpoint {model} was trained on ready-made features and has no encoder for images: "
            "give one that has"
        )
    if options.engine == "int8" and not (directory / INT8_ENCODER).is_file():
        raise UserError(
            f"the checkpoint {model} has no encoder in 8-bit integers: make one that has with python -m jobs.quantize"
        )
    search.check_detector(exists=config.model.detector is not None)
    # Each machine opens the checkpoint itself: at the same path, or from a URL.
    is_elsewhere = model == "default" or "://" in model
    return OpenCheckpoint(
        name=model,
        fingerprint=checkpoint_fingerprint(directory),
        search=search,
        source=model if is_elsewhere else str(directory.resolve()),
        engine=options.engine,
        transform=EncoderSquare(encoder.preprocessing),
        has_int8=(directory / INT8_ENCODER).is_file(),
        has_confidence=config.confidence is not None,
    )


def _check_kind(model: str) -> None:
    """Report a model of another kind that was given without its prefix, with the prefix in the message."""
    folder = Path(model).expanduser()
    if model == "default" or "://" in model:
        return
    if not folder.exists() and re.fullmatch(_HUB_NAME, model):
        raise UserError(
            f"no checkpoint at {model}: --model takes a folder or a URL with a checkpoint of this project; for a "
            f"model of the Hugging Face hub write hf:{model}, for one behind a server openai:{model} with --endpoint"
        )
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(stored, dict) and "model_type" in stored and "format" not in stored:
        raise UserError(f"{model} is a model in the form of the Hugging Face hub: write hf:{model}")


KIND = Kind(
    noun=NOUN,
    honours=frozenset({"engine", "max_new_tokens"}),
    default_search=_default_search,
    open=_open,
)
