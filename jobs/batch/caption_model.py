"""The captioner in the actors of the caption job: pixels → caption columns."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from captionlib.config import EngineKind, SearchConfig
from captionlib.errors import UserError
from jobs.outputs import schemas
from jobs.storage.paths import is_local

if TYPE_CHECKING:
    from captionlib.captioners.predictor import Predictor


NOT_FINITE = "NotFinite: the model's probabilities for this image are not numbers"


@dataclass(frozen=True)
class CaptionFactory:
    """Loads a checkpoint in an actor."""

    model: str
    """Checkpoint as `captionlib.checkpoints.resolve_checkpoint` accepts it, valid on every machine."""
    search: SearchConfig
    batch_size: int
    threads: int
    """Threads of the engine on a CPU."""
    metadata: Mapping[str, str]
    """Metadata of every file that is written."""
    engine: EngineKind = "auto"

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schema of the caption rows."""
        return {"captions": schemas.with_metadata(schemas.CAPTIONS, self.metadata)}

    def load(self) -> CaptionImages:
        """Load the checkpoint."""
        from captionlib.captioners.predictor import Predictor

        _check_model_visible(self.model)
        predictor = Predictor.from_checkpoint(self.model, num_threads=self.threads, engine=self.engine)
        return CaptionImages(predictor, self.search, self.batch_size)


class CaptionImages:
    """Captions pixels in batches of a fixed size."""

    def __init__(self, predictor: Predictor, search: SearchConfig, batch_size: int) -> None:
        self.predictor, self.search, self.batch_size = predictor, search, batch_size
        self.overlaps = predictor.device.type == "cuda"

    def __call__(self, pixels: np.ndarray, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        """Caption pixels, uint8 (B, S, S, 3), and return the columns of `schemas.CAPTIONS` that the model
        determines.
        """
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


def _check_model_visible(model: str) -> None:
    if model != "default" and is_local(model) and not os.path.isdir(model):
        raise UserError(
            f"the machine {socket.gethostname()} does not see {model}: the checkpoint must be in a folder that all "
            "machines share, or at a URL"
        )
