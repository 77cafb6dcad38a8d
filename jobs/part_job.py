"""A job over a set of images from its first look at the input to its last word: what caption and features share.

    list → manifest → what is left → parts through `pipeline.py`, in rounds → tidy up → count → run.json

Nothing is held in memory per image, and nothing that is finished depends on this process living on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captionlib.config import Preprocessing
from jobs import record
from jobs.export import export, formats_there
from jobs.guard import GOES_ON
from jobs.ledger import Stopped
from jobs.manifest import Manifest
from jobs.outputs import Counts, PartFiles
from jobs.pipeline import PipelineError
from jobs.prepare import check_inputs, check_places, for_record, list_inputs, open_output, reserved, without_password
from jobs.ranges import IdRange, subtract, total
from jobs.resources import Plan
from jobs.rounds import LARGEST_DEFAULT_PART, work_on
from jobs.session import ClusterError
from jobs.settings import PartSettings
from jobs.sidecar import Sidecar
from jobs.sources import Sources
from jobs.storage import Folder
from jobs.worker import ProcessorFactory


@dataclass(frozen=True, kw_only=True)
class PartJob:
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
    """Of `jobs.export`: what the rows are written as besides Parquet."""


@dataclass
class Outcome:
    """How a run ended, for the job's last words and its report."""

    output: Folder
    manifest: Manifest
    files: PartFiles
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


def run_job(job: PartJob, settings: PartSettings) -> Outcome:
    """Do all images of the inputs that are not done yet.

    Raises:
        ValueError: something is wrong with what the user gave; nothing was started.
        Stopped: it was started, and is not complete.
    """
    started = time.monotonic()
    output = Folder.of(settings.output)
    outputs = {name: PartFiles(output / name, name) for name in job.folders}
    main = outputs[job.folders[-1]]
    check_places(*settings.inputs, settings.output)
    sources = Sources(settings.inputs, settings.source)
    check_inputs(sources)
    identity = dict(job.identity)
    if settings.source.columns:
        identity["columns"] = list(settings.source.columns)
    with reserved(output):
        stored = open_output(output, outputs, job.kind, identity, overwrite=settings.overwrite)
        manifest = list_inputs(sources, output, stored, job.sidecar)
        planned = [IdRange(0, manifest.num_images - 1)]
        todo = subtract(planned, main.finished())
        redo = main.split_for_redo(LARGEST_DEFAULT_PART) if settings.retry_errors else {}
        outcome = Outcome(output, manifest, main, Counts(0, 0), identity)
        outcome.phases["listing"] = time.monotonic() - started
        if not todo and not redo:
            missing = set(job.formats) - set(formats_there(output, main))
            if missing or stored.get("state") != "complete":  # or killed between its last image and its end
                _finish(job, outcome)
                stored |= {"state": "complete", "images": _numbers(job, outcome)}
                record.write_record(output, stored)
            outcome.counts = _count(main, manifest)
            return outcome
        run: dict[str, Any] = {
            "started": record.now(),
            "settings": for_record(settings),
            "versions": record.versions(),
        }
        stored |= {
            "job": job.kind,
            "state": "running",
            "identity": identity,
            "inputs": [without_password(text) for text in settings.inputs],
            "runs": [*stored.get("runs", []), run],
        }
        record.write_record(output, stored)
        outcome.run = run
        try:
            work_on(job, settings, outputs, outcome, todo, redo)
            _finish(job, outcome)
            outcome.phases["end"] = time.monotonic() - started - sum(outcome.phases.values())
            stored["state"] = "complete"
        except ClusterError as error:
            run["stopped"] = str(error)
            raise
        except (Stopped, PipelineError, OSError) as error:
            stopped = _with_what_is_left(error, main, manifest)
            run["stopped"] = str(stopped)
            raise stopped from error
        except BaseException as error:
            run["stopped"] = str(error) or type(error).__name__
            raise
        finally:
            outcome.seconds = time.monotonic() - started
            _note_end(job, outcome, stored)
        return outcome


def _finish(job: PartJob, outcome: Outcome) -> None:
    """Make the output handy, and count what is in it."""
    if job.compact:
        outcome.files.compact()
    outcome.counts = _count(outcome.files, outcome.manifest)
    export(outcome.output, outcome.files, sorted({*job.formats, *formats_there(outcome.output, outcome.files)}))


def _numbers(job: PartJob, outcome: Outcome) -> dict[str, int]:
    done, failed = outcome.counts
    return {"planned": outcome.manifest.num_images, job.verb: done, "failed": failed}


def _note_end(job: PartJob, outcome: Outcome, stored: dict[str, Any]) -> None:
    """Write down how a run ended, in whichever way it did."""
    speed = outcome.images_per_second
    outcome.run["seconds"] = round(outcome.seconds, 1)
    outcome.run["start_up_seconds"] = round(outcome.start_up_seconds, 1)
    outcome.run["seconds_by_phase"] = {phase: round(seconds, 1) for phase, seconds in outcome.phases.items()}
    outcome.run["images"] = outcome.images
    outcome.run["images_per_second"] = None if speed is None else round(speed, 1)
    if stored["state"] == "running":
        stored["state"] = "incomplete"
    stored["images"] = _numbers(job, outcome)
    try:
        record.write_record(outcome.output, stored)
    except OSError as error:  # the end itself, and perhaps an error on its way, matters more
        print(f"{record.NAME} could not be written: {error}", file=sys.stderr)


def _with_what_is_left(error: Exception, files: PartFiles, manifest: Manifest) -> Stopped:
    """The reason for stopping, with what it means for the images."""
    try:
        left = total(subtract([IdRange(0, manifest.num_images - 1)], files.finished()))
    except (OSError, ValueError):  # the output itself is what fails
        return Stopped(f"{error}. {GOES_ON}")
    if not left:
        return Stopped(f"{error}. All images have a row; the same command finishes the rest")
    images = "1 image is" if left == 1 else f"{left:,} images are"
    return Stopped(f"{images} not done: {error}. What is finished stays; the same command does the others")


def _count(files: PartFiles, manifest: Manifest) -> Counts:
    """What the output's own files hold, which must be the manifest's images, each once.

    Raises:
        Stopped: it is not.
    """
    counted = files.count(files.finished())
    missing = subtract([IdRange(0, manifest.num_images - 1)], counted)
    if missing:
        raise Stopped(f"the output's files have no row for them, the first is image {missing[0].first}")
    return Counts(sum(c.done for c in counted.values()), sum(c.failed for c in counted.values()))
