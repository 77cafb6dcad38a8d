"""Describes a batch job, and the result of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captionlib.captioners.base import ANY_MACHINE, Needs
from captionlib.images.transforms import ImageTransform
from captionlib.storage.folder import Folder
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import ProcessorFactory
from jobs.cluster.resources import Plan
from jobs.outputs.chunk_files import ChunkFiles, Counts
from jobs.outputs.sidecar import Sidecar


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """Everything that distinguishes one batch job from another."""

    kind: str
    """Name of the job in run.json, such as `caption`."""
    verb: str
    """Past participle for messages, such as `captioned`."""
    folders: tuple[str, ...]
    """Subfolders of the output, one per kind of row. A chunk counts as finished when its file exists in the last
    one."""
    identity: Mapping[str, Any]
    """Everything that determines the rows. An output never mixes rows of two identities."""
    transform: ImageTransform
    """Decodes the bytes of an image file into the pixels that the model needs."""
    factory: Callable[[Plan], ProcessorFactory]
    arithmetic: Callable[[bool], str | None] = lambda gpu: None
    """How the model computes on machines with or without a GPU, such as `8-bit integers in OpenVINO`. An output never
    mixes rows that were computed differently."""
    compact: bool
    """Whether small files are merged at the end."""
    needs: Needs = ANY_MACHINE
    """Resources of one copy of the model."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of run.json for its readers, such as the model's name. They do not determine the rows."""
    packages: tuple[str, ...] = ()
    """Further packages whose versions run.json records."""
    sidecar: Sidecar | None = None
    """Writes each caption beside its image as well; None to write rows only."""
    formats: tuple[str, ...] = ()
    """Formats of `jobs.outputs.export` that the rows are exported to."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Images and seconds of one run."""

    images: int = 0
    """Number of images processed, failed ones included."""
    start_up_seconds: float = 0.0
    """Seconds until the first chunk was committed."""
    images_per_second: float | None = None
    """Rate after start-up; None if it was not measured."""
    rates: Sequence[tuple[float, float]] = ()
    """Pairs (seconds since the start, images per second since the previous pair)."""
    seconds_by_phase: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time: start of Ray, first images, other images."""
    seconds_by_step: Mapping[str, float] = field(default_factory=dict)
    """Time in reading, decoding, the model and writing, summed over chunks and threads."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Summary of a run, used for the final messages and the report."""

    output: Folder
    manifest: Manifest
    files: ChunkFiles
    counts: Counts
    identity: Mapping[str, Any]
    figures: Figures = field(default_factory=Figures)
    seconds: float = 0.0
    """Wall-clock time of the whole run."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files that were not read because of their names, by ending."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Entry of the run in run.json; empty if there was nothing to do."""

    @property
    def images(self) -> int:
        """Number of images processed in this run."""
        return self.figures.images
