"""The captioner in the actors of the caption job: pixels → caption columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from captionlib.captioners.base import (
    CaptionFault,
    LoadedCaptioner,
    OpenCaptioner,
    ServiceRefused,
    ServiceUnavailable,
)
from captionlib.storage.errors import AccessDenied, TransportFault
from jobs.outputs import schemas


@dataclass(frozen=True)
class CaptionFactory:
    """Loads a captioner in an actor."""

    captioner: OpenCaptioner
    batch_size: int | None
    """Number of images that go through the model together; None for the captioner's own default."""
    threads: int
    """Threads of the captioner on a CPU."""
    metadata: Mapping[str, str]
    """Metadata of every file that is written."""
    min_confidence: float | None = None
    """Captions of a lower confidence are marked."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schema of the caption rows."""
        return {"captions": schemas.with_metadata(schemas.CAPTIONS, self.metadata)}

    def load(self) -> CaptionImages:
        """Load the captioner on this machine."""
        loaded = self.captioner.load(batch_size=self.batch_size, num_threads=self.threads)
        return CaptionImages(loaded, self.min_confidence)


class CaptionImages:
    """Captions the images of a chunk."""

    def __init__(self, captioner: LoadedCaptioner, min_confidence: float | None = None) -> None:
        self.captioner, self.min_confidence = captioner, min_confidence
        self.overlaps = captioner.overlaps

    def __call__(
        self, pixels: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]
    ) -> Mapping[str, Mapping[str, pa.Array]]:
        """Caption images in the form of the captioner's transform, and return the columns of `schemas.CAPTIONS` that
        the captioner determines.

        Raises:
            TransportFault: a server cannot be reached at the moment.
            AccessDenied: a server rejects the credentials or does not have the model.
        """
        try:
            answers = self.captioner.caption_images(pixels, image_ids) if len(pixels) else []
        except ServiceUnavailable as error:
            raise TransportFault(str(error)) from error
        except ServiceRefused as error:
            raise AccessDenied(str(error)) from error
        assert len(answers) == len(pixels), f"{len(answers)} answers for {len(pixels)} images"
        found = [None if isinstance(answer, CaptionFault) else answer for answer in answers]
        best = [captions and captions[0] for captions in found]
        columns: dict[str, list[Any]] = {
            "caption": [c and c.text for c in best],
            "log_prob": [c and c.log_prob for c in best],
            "num_tokens": [c and c.num_tokens for c in best],
            "finish_reason": [c and c.finish_reason for c in best],
            "confidence": [c and c.confidence for c in best],
            "low_confidence": [c and self._is_low(c.confidence) for c in best],
            "captions": [cs and [{"text": c.text, "log_prob": c.log_prob} for c in cs] for cs in found],
            "error": [str(answer) if isinstance(answer, CaptionFault) else None for answer in answers],
        }
        types = schemas.CAPTIONS
        return {"captions": {k: pa.array(v, types.field(k).type) for k, v in columns.items()}}

    def _is_low(self, confidence: float | None) -> bool | None:
        if confidence is None or self.min_confidence is None:
            return None
        return confidence < self.min_confidence
