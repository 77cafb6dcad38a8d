"""The work itself: images through the pipeline, in rounds, until each has a row.

What could not be done in one round comes again in the next, after a pause and in smaller parts; an image at which
every process dies is found so, and gets a row that says it. After exceptions that nobody foresaw there is no pause, and
the run stops when they come again and nothing else is left to do.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs import beside
from jobs.ledger import Ledger, Stopped
from jobs.manifest import NO_COLUMNS, Manifest
from jobs.outputs import PartFiles
from jobs.pipeline import Pipeline
from jobs.progress import Progress, format_seconds
from jobs.ranges import IdRange, cut, total
from jobs.resources import Plan, plan
from jobs.session import RaySession
from jobs.settings import PartSettings
from jobs.sources import Sources
from jobs.stages import FetchAndDecode, Part
from jobs.worker import ProcessorFactory, WithColumns

if TYPE_CHECKING:
    from jobs.part_job import Outcome, PartJob

LARGEST_DEFAULT_PART = 512
SMALLEST_DEFAULT_PART = 64
PARTS_PER_ACTOR = 8
PARTS_PER_DECODER = 4


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
    with contextlib.ExitStack() as stack:
        if beside.suits(num_todo, work):
            kind: type[Pipeline] = beside.Beside
            resources = beside.plan_beside(work.num_cpus)
            progress.say(f"{num_todo:,} images to do, in one process, without Ray: they are few")
        else:
            session = stack.enter_context(RaySession(work.address, work.num_cpus, work.num_gpus, progress.say))
            kind, resources = Pipeline, plan(session.nodes(), work.num_actors)
            progress.say(f"{num_todo:,} images to do, with {resources}")
        outcome.phases["ray"] = progress.seconds
        fetch = FetchAndDecode(
            outcome.manifest,
            outcome.files,
            job.preprocessing,
            resources.decode_threads,
            Sources(settings.inputs, settings.source).local_roots(),
            settings.source.image_column,
        )
        factory = WithColumns(job.factory(resources), outcome.manifest.columns() or NO_COLUMNS)
        pipeline = kind(fetch, factory, outputs, resources, job.sidecar)
        ledger = Ledger(outcome.files, progress, faults.max_error_share, patience=8 + 2 * resources.num_actors)
        size = work.images_per_part or default_part_size(num_todo, resources)
        parts = [Part(ids, redo_errors=True) for ids in redo] + [Part(ids) for ids in cut(todo, size)]
        pause, tries_left = faults.transport_pause, faults.transport_retries
        try:
            with progress:
                rounds = deque([parts])
                while rounds:
                    parts = rounds.popleft()
                    with contextlib.closing(pipeline.receipts(parts)) as receipts:
                        ended = ledger.follow(parts, receipts)
                    for part in ended.deadly:
                        _write_deadly(part.ids, outcome.manifest, factory, outputs)
                        progress.add(0, 1)
                    rounds += [ended.left] if ended.left else []
                    rounds += [[part] for part in ended.suspects]
                    if not ended.left:
                        continue
                    left = f"{num_todo - progress.images:,} images are left ({ledger.last_reason})"
                    if ended.unforeseen:
                        # No pause would help: what is left is cut ever smaller, so that the others get done.
                        stuck = ended.repeated and not ended.made_progress
                        if stuck and (ended.smallest or not progress.images):
                            raise Stopped(str(ledger.failures.last))
                        progress.say(f"{left}; trying again at once, in smaller parts")
                        continue
                    if ended.made_progress:
                        pause, tries_left = faults.transport_pause, faults.transport_retries
                    elif not tries_left:
                        raise Stopped(ledger.last_reason)
                    else:
                        tries_left -= 1
                    progress.say(f"{left}; trying again in {format_seconds(pause)}")
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
