"""An image with its caption and scores, as shown in reports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIDE = 360
"""Longer side of a thumbnail in pixels, sharp on a phone and about 20 KB as JPEG."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image in a report. An image without a caption has an `error`."""

    path: str
    thumbnail_jpeg: bytes | None = None
    """Result of `thumbnail_jpeg()`; None if the image could not be decoded."""
    caption: str | None = None
    log_prob: float | None = None
    """Natural log-probability of the caption, summed over its tokens."""
    num_tokens: int | None = None
    confidence: float | None = None
    """Probability in [0, 1] that the caption is right."""
    is_doubtful: bool = False
    """Whether the card is marked as one whose caption may well be wrong."""
    alternatives: Sequence[tuple[str, float]] = ()
    """The other hypotheses, best first: text and log-probability."""
    notes: Sequence[tuple[str, str]] = ()
    """Further lines, each a label and a text, such as references and scores."""
    error: str | None = None
    """`Kind: message`, as in the job's output."""

    @property
    def log_prob_per_token(self) -> float | None:
        """Mean log-probability of a token; its exponential is the geometric mean probability."""
        if self.log_prob is None or not self.num_tokens:
            return None
        return self.log_prob / self.num_tokens

    @property
    def certainty(self) -> float:
        """What cards are sorted by: the confidence, or else the mean log-probability of a token."""
        if self.confidence is not None:
            return self.confidence
        return -1e9 if self.log_prob_per_token is None else self.log_prob_per_token

    @property
    def error_kind(self) -> str:
        """The part of `error` before the colon."""
        return (self.error or "").partition(":")[0].strip()

    @property
    def error_message(self) -> str:
        """The part of `error` after the colon."""
        return (self.error or "").partition(":")[2].strip()


def thumbnail_jpeg(image: Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """Encode an upright RGB image as JPEG, scaled so that its longer side is at most `side` pixels."""
    from PIL import Image

    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=82, optimize=True, progressive=True)
    return file.getvalue()
