"""What every captioner has in common: the contract between a model, wherever it runs, and a job that holds it.

A captioner comes in two steps. `open` (see `captionlib.captioners.zoo`) finds out what can be known without the
weights, and says what is wrong with a request; the result travels to other machines, and `load` there makes the
captioner itself. To add a kind, write both in a file of its own and give it a row in the zoo's table.

Shapes: B images of a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from captionlib.config import SearchConfig
from captionlib.errors import CaptionlibError
from captionlib.images.transforms import ImageTransform

FinishReason = Literal["end", "length"]


class ServiceUnavailable(CaptionlibError, OSError):
    """What the captioner needs cannot be reached for the moment; the images are not at fault, and can come again."""


class ServiceRefused(CaptionlibError, OSError):
    """What the captioner needs refuses the caller, whichever the image: a key is wrong, or a model is not there."""


@dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    text: str
    log_prob: float | None
    """Sum of the model's log-probabilities over the tokens and the end, natural log; None where it does not say."""
    num_tokens: int | None
    """Words or tokens, without the end; None where the model does not say."""
    finish_reason: FinishReason | None = None
    """Whether the model ended the caption, or the largest number of tokens did; None where it does not say."""
    confidence: float | None = None
    """Calibrated probability in [0, 1] that the caption is right; None where the model is not calibrated (see
    `captionlib.confidence`)."""


@dataclass(frozen=True)
class CaptionFault:
    """Why an image has no caption, although it could be read."""

    kind: str
    """Stable, for counting and for queries."""
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


NOT_FINITE = CaptionFault("NotFinite", "the model's probabilities for this image are not numbers")

Answer = list[Caption] | CaptionFault
"""An image's captions, best first, at least one; or why there are none."""


class LoadedCaptioner(Protocol):
    """A captioner with its weights, or its connection, ready to work."""

    @property
    def overlaps(self) -> bool:
        """Whether two threads may call it at once, and gain by it."""

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Caption any number of images; how many go through the model together is the captioner's affair.

        Args:
            images: as the captioner's transform makes them: uint8 (B, S, S, 3), or B arrays HWC uint8 (H, W, 3)
                of their own sizes; in [0, 255], read-only.
            image_ids: B ids, for whatever is drawn at random.

        Returns:
            B answers.

        Raises:
            ServiceUnavailable, ServiceRefused: see there; nothing is lost but the work of this call.
        """


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one copy of a captioner takes of a machine."""

    memory_gib: float = 1.0
    """PyTorch, the weights, and a batch on its way through them."""
    uses_gpu: bool = True
    """Whether a GPU helps it, where there is one."""
    cpus: float | None = None
    """CPUs that it keeps busy; None: as many as it can have."""


ANY_MACHINE = Needs()


class OpenCaptioner(Protocol):
    """What is known of a captioner before it is loaded. Can be pickled."""

    @property
    def name(self) -> str:
        """For a person who reads the record of a run, such as `hf:Salesforce/blip-image-captioning-base@82a37760`."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal weights: 16 hexadecimal digits, a revision, or what else says which model it is."""

    @property
    def search(self) -> SearchConfig:
        """How captions are found."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the captions beside model and search, as JSON holds it, such as a prompt."""

    def arithmetic(self, *, gpu: bool) -> str:
        """Return how the captioner computes on a machine with or without a GPU, such as `float32 in PyTorch`. An output
        never mixes captions that were computed differently."""

    @property
    def transform(self) -> ImageTransform:
        """What decoding is to make of an image file."""

    @property
    def needs(self) -> Needs:
        """What one copy of it takes."""

    @property
    def has_confidence(self) -> bool:
        """Whether its captions have a confidence."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose versions belong into the record."""

    def load(self, *, batch_size: int | None, num_threads: int) -> LoadedCaptioner:
        """Load it on this machine.

        Args:
            batch_size: images that go through the model together; None for what suits it.
            num_threads: threads on a CPU.

        Raises:
            UserError, OSError: the model is not to be had here; the message says what to do.
        """
