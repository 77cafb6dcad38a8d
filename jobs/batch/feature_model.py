"""The feature extractor in the actors of a batch job: pixels → the column `features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from captionlib.config import EncoderConfig
from captionlib.errors import UserError
from jobs.outputs import schemas

if TYPE_CHECKING:
    from captionlib.encoders import Encoder
    from captionlib.engines.base import EncoderEngine

_LARGEST_FLOAT16 = 65_504.0


@dataclass(frozen=True)
class FeatureFactory:
    """Builds an encoder in an actor."""

    encoder: EncoderConfig
    model: str | None
    """Checkpoint that contains the encoder; None for the library's ImageNet weights."""
    fingerprint: str
    """Fingerprint of the weights of the encoder."""
    flip: bool
    crops: int
    batch_size: int
    threads: int
    """Threads of the engine on a CPU."""
    metadata: Mapping[str, str]

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schemas of the feature rows, one folder per view of the images."""
        from captionlib.features.store import feature_schema

        made = {}
        for folder in feature_folders(flip=self.flip, crops=self.crops):
            view = folder.removeprefix("features").removeprefix("_")
            schema = feature_schema(self.encoder, self.fingerprint, {"view": view} if view else {})
            made[folder] = schemas.with_metadata(schema, self.metadata)
        return made

    def load(self) -> EncodeImages:
        """Build the encoder with its weights."""
        import torch

        from captionlib.engines.build import build_engine

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
    """Return the folders of features, one per view. The plain view is last, because its files mark a chunk as
    finished.
    """
    cropped = tuple(f"features_crop_{number}" for number in range(1, crops + 1))
    return (*cropped, *(("features_flipped",) if flip else ()), "features")


class EncodeImages:
    """Encodes pixels into features (B, N, D) float16, in batches of a fixed size."""

    def __init__(
        self, engine: EncoderEngine, encoder: EncoderConfig, *, flip: bool, crops: int, batch_size: int
    ) -> None:
        from captionlib.engines.cuda_engine import CudaEngine

        self.engine, self.encoder, self.flip, self.crops, self.batch_size = engine, encoder, flip, crops, batch_size
        self.overlaps = isinstance(engine, CudaEngine)

    def __call__(
        self, pixels: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]
    ) -> Mapping[str, Mapping[str, pa.Array]]:
        """Encode pixels, uint8 (B, S, S, 3), and return the column `features` for each view of the images."""
        pixels = np.asarray(pixels)
        made = {"features": {"features": self._features(pixels)}}
        if self.flip:
            made["features_flipped"] = {"features": self._features(pixels[:, :, ::-1])}
        for number in range(1, self.crops + 1):
            made[f"features_crop_{number}"] = {"features": self._features(self._crops(pixels, image_ids, number))}
        return made

    def _crops(self, pixels: np.ndarray, image_ids: Sequence[int], number: int) -> np.ndarray:
        """Crop each image at random; the crop depends only on the image id and the number of the view."""
        from captionlib.images.pixels import augment

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
            # Checked and rounded on the device: this halves the bytes to copy, and NumPy takes five times as long.
            lowest, highest = batch.aminmax()  # both are NaN if any value is NaN
            if not bool((lowest >= -_LARGEST_FLOAT16) & (highest <= _LARGEST_FLOAT16)):
                raise UserError(
                    f"{self.encoder.name} gives features beyond the range of float16: choose another of its outputs"
                )
            values[start : start + self.batch_size] = batch.half()
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(2 * width), len(pixels), [None, pa.py_buffer(values.numpy())]
        )


def load_encoder(encoder: EncoderConfig, model: str | None) -> Encoder:
    """Build the network with the weights of a checkpoint or the library's ImageNet weights.

    Raises:
        UserError: there are no weights, or they do not fit; the message states what to do.
    """
    from captionlib.encoders import build_encoder

    if model is None:
        return build_encoder(encoder, pretrained=True)
    from captionlib.checkpoints import check_checkpoint_visible, load_checkpoint, load_weights, resolve_checkpoint

    check_checkpoint_visible(model)
    built = build_encoder(encoder)
    load_weights(built, load_checkpoint(resolve_checkpoint(model)).part("encoder"), f"the encoder of {model}")
    return built
