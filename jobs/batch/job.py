"""What a batch job is, and the result of one run of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captionlib.config import Preprocessing
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import ProcessorFactory
from jobs.cluster.resources import Plan
from jobs.outputs.chunk_files import ChunkFiles, Counts
from jobs.outputs.sidecar import Sidecar
from jobs.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class BatchJob:
    """What distinguishes one job over images from another."""

    kind: str
    """Such as `caption`; a name in run.json."""
    verb: str
    """Such as `captioned`."""
    folders: tuple[str, ...]
    """Of the output. The last holds the files that say what is finished."""
    identity: Mapping[str, Any]
    """Whatever decides the rows: an output never mixes two."""
    preprocessing: Preprocessing
    factory: Callable[[Plan], ProcessorFactory]
    compact: bool
    """Whether small files are merged at the end."""
    sidecar: Sidecar | None = None
    """Writes captions beside the images too."""
    formats: tuple[str, ...] = ()
    """Of `jobs.outputs.export`: what the rows are written as besides Parquet."""


@dataclass
class RunResult:
    """How a run ended, for the job's last words and its report."""

    output: Folder
    manifest: Manifest
    files: ChunkFiles
    counts: Counts
    identity: Mapping[str, Any]
    images: int = 0
    """Done in this run."""
    seconds: float = 0.0
    start_up_seconds: float = 0.0
    images_per_second: float | None = None
    """Once warm."""
    rates: list[tuple[float, float]] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of wall clock, in order: listing, Ray's start, the first images, the others, the end."""
    run: dict[str, Any] = field(default_factory=dict)
