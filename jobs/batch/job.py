"""Describes a batch job, and the result of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captionlib.captioners.base import ANY_MACHINE, Needs
from captionlib.images.transforms import ImageTransform
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import ProcessorFactory
from jobs.cluster.resources import Plan
from jobs.outputs.chunk_files import ChunkFiles, Counts
from jobs.outputs.sidecar import Sidecar
from jobs.storage.folder import Folder


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


@dataclass
class RunResult:
    """Summary of a run, used for the final messages and the report."""

    output: Folder
    manifest: Manifest
    files: ChunkFiles
    counts: Counts
    identity: Mapping[str, Any]
    images: int = 0
    """Number of images processed in this run."""
    seconds: float = 0.0
    start_up_seconds: float = 0.0
    images_per_second: float | None = None
    """Rate after start-up; None if it was not measured."""
    rates: list[tuple[float, float]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of wall-clock time by phase: listing, start of Ray, first images, other images, end."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of files that were not read because of their names, by ending."""
    run: dict[str, Any] = field(default_factory=dict)
