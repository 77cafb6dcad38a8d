"""A job over a set of images from its first look at the input to its last word: what caption and features share.

    list → manifest → what is left → parts through `pipeline.py`, in rounds → tidy up → count → run.json

Nothing is held in memory per image, and nothing that is finished depends on this process living on.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from captionlib.config import Preprocessing
from jobs import record
from jobs.export import export, formats_there
from jobs.ledger import Ledger, Stopped
from jobs.manifest import NO_COLUMNS, Manifest
from jobs.outputs import Counts, PartFiles
from jobs.pipeline import Pipeline, PipelineError
from jobs.prepare import check_inputs, check_places, for_record, list_inputs, open_output, reserved, without_password
from jobs.progress import Progress, format_seconds
from jobs.ranges import IdRange, cut, subtract, total
from jobs.resources import Plan, plan
from jobs.session import ClusterError, RaySession
from jobs.settings import PartSettings
from jobs.sidecar import Sidecar
from jobs.sources import Sources
from jobs.stages import FetchAndDecode, Part
from jobs.storage import Folder
from jobs.worker import ProcessorFactory, WithColumns

LARGEST_DEFAULT_PART = 512
SMALLEST_DEFAULT_PART = 64
PARTS_PER_ACTOR = 8
PARTS_PER_DECODER = 4


_GOES_ON = "What is finished stays; the same command goes on from there"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: to be handled as Ctrl-C is."""


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


def guarded(prog: str, action: Callable[[], int]) -> int:
    """Run a job's body; what can go wrong without being a bug becomes a sentence on stderr and an exit code."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        return action()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except Terminated:
        print(f"{prog}: terminated. {_GOES_ON}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{prog}: interrupted. {_GOES_ON}", file=sys.stderr)
        return 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> None:
    raise Terminated


# --- the work ---------------------------------------------------------------------------------------------------


def default_part_size(num_images: int, resources: Plan) -> int:
    """Images per part: large enough that Ray's 20 ms per part do not count, small enough to keep all workers busy."""
    num_parts = max(PARTS_PER_ACTOR * resources.num_actors, PARTS_PER_DECODER * resources.num_decoders)
    even = math.ceil(num_images / num_parts)
    return min(LARGEST_DEFAULT_PART, max(SMALLEST_DEFAULT_PART, even))


def work_on(
    job: PartJob,
    settings: PartSettings,
    outputs: Mapping[str, PartFiles],
    outcome: Outcome,
    todo: list[IdRange],
    redo: Mapping[IdRange, int],
) -> None:
    """Do what is left, in rounds: what could not be done comes again after a pause, in smaller parts."""
    work, faults = settings.work, settings.faults
    num_todo = total(todo) + sum(redo.values())
    progress = Progress(outcome.manifest.num_images, outcome.manifest.num_images - num_todo, job.verb)
    with RaySession(work.address, work.num_cpus, work.num_gpus, progress.say) as session:
        outcome.phases["ray"] = progress.seconds
        resources = plan(session.nodes(), work.num_actors)
        progress.say(f"{num_todo:,} images to do, with {resources}")
        fetch = FetchAndDecode(
            outcome.manifest,
            outcome.files,
            job.preprocessing,
            resources.decode_threads,
            Sources(settings.inputs, settings.source).local_roots(),
            settings.source.image_column,
        )
        factory = WithColumns(job.factory(resources), outcome.manifest.columns() or NO_COLUMNS)
        pipeline = Pipeline(fetch, factory, outputs, resources, job.sidecar)
        ledger = Ledger(outcome.files, progress, faults.max_error_share, patience=8 + 2 * resources.num_actors)
        size = work.images_per_part or default_part_size(num_todo, resources)
        parts = [Part(ids, redo_errors=True) for ids in redo] + [Part(ids) for ids in cut(todo, size)]
        pause, tries_left = faults.transport_pause, faults.transport_retries
        try:
            with progress:
                while parts:
                    with contextlib.closing(pipeline.receipts(parts)) as receipts:
                        ended = ledger.follow(parts, receipts)
                    for part in ended.deadly:
                        _write_deadly(part.ids, outcome.manifest, factory, outputs)
                        progress.add(0, 1)
                    parts = ended.left
                    if not parts:
                        break
                    if ended.made_progress:
                        pause, tries_left = faults.transport_pause, faults.transport_retries
                    elif not tries_left:
                        raise Stopped(ledger.last_reason)
                    else:
                        tries_left -= 1
                    progress.say(
                        f"{num_todo - progress.images:,} images are left ({ledger.last_reason}); "
                        f"trying again in {format_seconds(pause)}"
                    )
                    time.sleep(pause)
                    pause *= 3
        finally:
            outcome.images = progress.images
            outcome.start_up_seconds = progress.start_up_seconds
            outcome.phases["first images"] = progress.start_up_seconds - outcome.phases["ray"]
            outcome.phases["other images"] = progress.seconds - progress.start_up_seconds
            outcome.images_per_second = progress.images_per_second
            outcome.rates = progress.rates
            outcome.run["seconds_by_step"] = {step: round(spent, 1) for step, spent in ledger.seconds.items()}


def _with_what_is_left(error: Exception, files: PartFiles, manifest: Manifest) -> Stopped:
    """The reason for stopping, with what it means for the images."""
    try:
        left = total(subtract([IdRange(0, manifest.num_images - 1)], files.finished()))
    except (OSError, ValueError):  # the output itself is what fails
        return Stopped(f"{error}. {_GOES_ON}")
    if not left:
        return Stopped(f"{error}. All images have a row; the same command finishes the rest")
    images = "1 image is" if left == 1 else f"{left:,} images are"
    return Stopped(f"{images} not done: {error}. What is finished stays; the same command does the others")


def _write_deadly(
    ids: IdRange, manifest: Manifest, factory: ProcessorFactory, outputs: Mapping[str, PartFiles]
) -> None:
    """A row for an image at which each process that touched it died: accounted for, without touching it again."""
    image = manifest.read(ids).to_pylist()[0]
    known = {
        **image,
        **image.get("columns", {}),
        "error": "WorkerDied: each process that worked on this image died, several times",
    }
    for name, schema in factory.schemas().items():
        rows = [pa.array([known.get(column.name)], column.type) for column in schema]
        outputs[name].write(ids, pa.table(rows, schema=schema))


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
