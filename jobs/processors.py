"""The models as a job's actors hold them: pixels → the columns of captions, or of features."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from captionlib.config import EncoderConfig, EngineKind, SearchConfig
from jobs import schemas
from jobs.fetch import is_local

if TYPE_CHECKING:
    from captionlib.encoders import Encoder
    from captionlib.predictor import Predictor
    from captionlib.runtime import EncoderEngine


_LARGEST_FLOAT16 = 65_504.0
NOT_FINITE = "NotFinite: the model's probabilities for this image are not numbers"


@dataclass(frozen=True)
class CaptionFactory:
    """Loads a checkpoint in an actor."""

    model: str
    """As `captionlib.checkpoints.resolve_checkpoint` takes it, on every machine."""
    search: SearchConfig
    batch_size: int
    threads: int
    """For the engine on a CPU."""
    metadata: Mapping[str, str]
    """For every file that is written."""
    engine: EngineKind = "auto"

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Caption rows."""
        return {"captions": schemas.with_metadata(schemas.CAPTIONS, self.metadata)}

    def load(self) -> CaptionImages:
        """Load the checkpoint."""
        from captionlib.predictor import Predictor

        _check_sight(self.model)
        predictor = Predictor.from_checkpoint(self.model, num_threads=self.threads, engine=self.engine)
        return CaptionImages(predictor, self.search, self.batch_size)


class CaptionImages:
    """Pixels → captions, in batches of the model's liking."""

    def __init__(self, predictor: Predictor, search: SearchConfig, batch_size: int) -> None:
        self.predictor, self.search, self.batch_size = predictor, search, batch_size
        self.overlaps = predictor.device.type == "cuda"

    def __call__(self, pixels: np.ndarray, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        """pixels uint8 (B, S, S, 3) → the columns of `schemas.CAPTIONS` that the model decides."""
        found = []
        for start in range(0, len(pixels), self.batch_size):
            batch = slice(start, start + self.batch_size)
            found += self.predictor.caption_pixels(pixels[batch], self.search, image_ids[batch])
        assert len(found) == len(pixels), f"{len(found)} captions for {len(pixels)} images"
        # NaN or -inf: the model's answer is no number, and its words mean nothing.
        answered = [[c for c in hypotheses if math.isfinite(c.log_prob)] for hypotheses in found]
        best = [hypotheses[0] if hypotheses else None for hypotheses in answered]
        every = [[{"text": c.text, "log_prob": c.log_prob} for c in hypotheses] or None for hypotheses in answered]
        columns: dict[str, list[Any]] = {
            "caption": [c and c.text for c in best],
            "log_prob": [c and c.log_prob for c in best],
            "num_tokens": [c and c.num_tokens for c in best],
            "captions": every,
            "error": [None if c else NOT_FINITE for c in best],
        }
        types = schemas.CAPTIONS
        return {"captions": {k: pa.array(v, types.field(k).type) for k, v in columns.items()}}


@dataclass(frozen=True)
class FeatureFactory:
    """Builds an encoder in an actor."""

    encoder: EncoderConfig
    model: str | None
    """The checkpoint whose encoder it is; None for the library's ImageNet weights."""
    fingerprint: str
    """Of the encoder's weights."""
    flip: bool
    crops: int
    batch_size: int
    threads: int
    """For the engine on a CPU."""
    metadata: Mapping[str, str]

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Rows of features, a folder for each view of the images."""
        from captionlib.features import feature_schema

        made = {}
        for folder in feature_folders(flip=self.flip, crops=self.crops):
            view = folder.removeprefix("features").removeprefix("_")
            schema = feature_schema(self.encoder, self.fingerprint, {"view": view} if view else {})
            made[folder] = schemas.with_metadata(schema, self.metadata)
        return made

    def load(self) -> EncodeImages:
        """Build the encoder with its weights."""
        import torch

        from captionlib.runtime import build_engine

        torch.set_num_threads(self.threads)
        engine = build_engine(
            load_encoder(self.encoder, self.model),
            self.encoder.preprocessing,
            fingerprint=self.fingerprint,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
            num_threads=self.threads,
        )
        return EncodeImages(engine, self.encoder, flip=self.flip, crops=self.crops, batch_size=self.batch_size)


def feature_folders(*, flip: bool, crops: int) -> tuple[str, ...]:
    """Folders of features, one for each view; the plain one last, as it says that a part is finished."""
    cropped = tuple(f"features_crop_{number}" for number in range(1, crops + 1))
    return (*cropped, *(("features_flipped",) if flip else ()), "features")


class EncodeImages:
    """Pixels → features (B, N, D) in float16, in batches of the engine's liking."""

    def __init__(
        self, engine: EncoderEngine, encoder: EncoderConfig, *, flip: bool, crops: int, batch_size: int
    ) -> None:
        from captionlib.cuda_engine import CudaEngine

        self.engine, self.encoder, self.flip, self.crops, self.batch_size = engine, encoder, flip, crops, batch_size
        self.overlaps = isinstance(engine, CudaEngine)

    def __call__(self, pixels: np.ndarray, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        """pixels uint8 (B, S, S, 3) → the column `features`, for the images and for their other views."""
        made = {"features": {"features": self._features(pixels)}}
        if self.flip:
            made["features_flipped"] = {"features": self._features(pixels[:, :, ::-1])}
        for number in range(1, self.crops + 1):
            made[f"features_crop_{number}"] = {"features": self._features(self._crops(pixels, image_ids, number))}
        return made

    def _crops(self, pixels: np.ndarray, image_ids: Sequence[int], number: int) -> np.ndarray:
        """A random crop of each image, the same whenever and wherever the image is encoded."""
        from captionlib.transforms import augment

        seen = [
            augment(image, self.encoder.preprocessing, np.random.default_rng((number, image_id)))
            for image, image_id in zip(pixels, image_ids, strict=True)
        ]
        return np.stack(seen)

    def _features(self, pixels: np.ndarray) -> pa.Array:
        import torch

        width = self.encoder.num_positions * self.encoder.feature_dim
        values = torch.empty(len(pixels), width, dtype=torch.float16)  # (B, N * D)
        for start in range(0, len(pixels), self.batch_size):
            batch = self.engine(np.ascontiguousarray(pixels[start : start + self.batch_size])).flatten(1)
            # Checked and rounded where it is: half as many bytes leave a GPU, and NumPy takes five times as long.
            lowest, highest = batch.aminmax()  # NaN where one is among them
            if not bool((lowest >= -_LARGEST_FLOAT16) & (highest <= _LARGEST_FLOAT16)):
                raise ValueError(f"{self.encoder.name} gives features beyond float16: take another of its outputs")
            values[start : start + self.batch_size] = batch.half()
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(2 * width), len(pixels), [None, pa.py_buffer(values.numpy())]
        )


def _check_sight(model: str) -> None:
    if model != "default" and is_local(model) and not os.path.isdir(model):
        raise ValueError(
            f"the machine {socket.gethostname()} does not see {model}: the checkpoint must be in a folder that all "
            "machines share, or at a URL"
        )


def load_encoder(encoder: EncoderConfig, model: str | None) -> Encoder:
    """The network with its weights: those of a checkpoint, or the library's.

    Raises:
        ValueError: there are none, or they do not fit; the message says what to do.
    """
    from captionlib.encoders import build_encoder

    if model is None:
        return build_encoder(encoder, pretrained=True)
    _check_sight(model)
    from captionlib.checkpoints import load_checkpoint, load_weights, resolve_checkpoint

    built = build_encoder(encoder)
    load_weights(built, load_checkpoint(resolve_checkpoint(model)).part("encoder"), f"the encoder of {model}")
    return built
