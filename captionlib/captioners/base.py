"""The contract between captioners of all kinds and the jobs that use them.

A captioner is used in two steps. `open` (see `captionlib.captioners.zoo`) examines a model without its weights and
reports mistakes of the request. The result is sent to other machines, where `load` creates the captioner. To add a
kind, write both in a file of its own and add a row to the table of the zoo.

Shapes: B images of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from captionlib.config import SearchConfig
from captionlib.errors import CaptionlibError
from captionlib.images.transforms import ImageTransform

FinishReason = Literal["end", "length"]


class ServiceUnavailable(CaptionlibError, OSError):
    """A service that the captioner needs cannot be reached at present. The images are not at fault and can be
    retried.
    """


class ServiceRefused(CaptionlibError, OSError):
    """A service that the captioner needs rejects every request: the key is wrong, or the model does not exist."""


@dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    text: str
    log_prob: float | None
    """Sum of the log-probabilities of the tokens and of the end, natural logarithm; None if the model does not
    report it."""
    num_tokens: int | None
    """Number of words or tokens without the end; None if the model does not report it."""
    finish_reason: FinishReason | None = None
    """Whether the model ended the caption or it reached the largest number of tokens; None if unknown."""
    confidence: float | None = None
    """Calibrated probability in [0, 1] that the caption is right; None for a model without calibration (see
    `captionlib.confidence`)."""


@dataclass(frozen=True)
class CaptionFault:
    """The reason why an image that could be read has no caption."""

    kind: str
    """A stable name for statistics and queries."""
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


NOT_FINITE = CaptionFault("NotFinite", "the model's probabilities for this image are not numbers")

Answer = list[Caption] | CaptionFault
"""The captions of an image, best first, at least one; or the reason why there is none."""


@dataclass(frozen=True)
class Stages:
    """The encoder and the search of a captioner, which can be measured one by one."""

    engine: str
    """Name of the engine that runs the encoder."""
    encode: Callable[[np.ndarray], Any]
    """Converts pixels, uint8 (B, S, S, 3), to features; returns when they are computed."""
    search: Callable[[Any], object]
    """Captions the features."""


class LoadedCaptioner(Protocol):
    """A captioner with its weights or its connection, ready to use."""

    @property
    def overlaps(self) -> bool:
        """Whether concurrent calls from two threads are allowed and faster."""

    def stages(self) -> Stages | None:
        """Return its encoder and its search; None if it can be measured only as a whole."""

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Caption any number of images, in batches of the captioner's choice.

        Args:
            images: output of the captioner's transform: uint8 (B, S, S, 3), or B arrays HWC uint8 (H, W, 3) of
                different sizes; in [0, 255], read-only.
            image_ids: B ids, which seed random choices.

        Returns:
            B answers.

        Raises:
            ServiceUnavailable, ServiceRefused: the captions of this call are lost.
        """


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Resources of one copy of a captioner."""

    memory_gib: float = 1.0
    """Memory for PyTorch, the weights and one batch, in GiB."""
    uses_gpu: bool = True
    """Whether the captioner uses a GPU if there is one."""
    cpus: float | None = None
    """Number of CPUs that it keeps busy; None for any number."""


ANY_MACHINE = Needs()


class OpenCaptioner(Protocol):
    """A captioner before its weights are loaded. It can be pickled."""

    @property
    def name(self) -> str:
        """Name for the run record, such as `hf:Salesforce/blip-image-captioning-base@82a37760`."""

    @property
    def fingerprint(self) -> str:
        """Identifier of the weights: 16 hexadecimal digits, a revision, or a name."""

    @property
    def search(self) -> SearchConfig:
        """Search settings."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything else that determines the captions, as JSON values, such as a prompt."""

    def arithmetic(self, *, gpu: bool) -> str:
        """Return how the captioner computes on a machine with or without a GPU, such as `float32 in PyTorch`. An output
        never mixes captions that were computed differently."""

    @property
    def transform(self) -> ImageTransform:
        """Conversion of an image file to the pixels that the captioner needs."""

    @property
    def needs(self) -> Needs:
        """Resources of one copy."""

    @property
    def has_confidence(self) -> bool:
        """Whether its captions have a confidence."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose versions are recorded."""

    def load(self, *, batch_size: int | None, num_threads: int) -> LoadedCaptioner:
        """Load the captioner on this machine.

        Args:
            batch_size: number of images per batch of the model; None for a suitable number.
            num_threads: number of threads on a CPU.

        Raises:
            UserError, OSError: the model is not available here; the message states what to do.
        """
