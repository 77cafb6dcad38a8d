"""Processes images in rounds until each has a row.

Chunks that failed in one round are retried in the next, in smaller pieces and after an exponentially growing pause. An
image that kills every process that works on it is isolated in this way and gets a row with an error. After unexpected
exceptions there is no pause, and the run stops when they are repeated and nothing else remains.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from jobs.batch import single_process
from jobs.batch.chunk_tracker import ChunkTracker
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.manifest import NO_COLUMNS, Manifest
from jobs.batch.model_stage import PassthroughColumns, ProcessorFactory
from jobs.batch.ray_pipeline import Pipeline
from jobs.batch.settings import BatchSettings
from jobs.cli.errors import JobIncomplete
from jobs.cli.masking import masked
from jobs.cli.progress import Progress, format_seconds
from jobs.cluster.resources import Plan, plan
from jobs.cluster.session import RaySession
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange, cut, total

if TYPE_CHECKING:
    from jobs.batch.job import BatchJob, RunResult

LARGEST_DEFAULT_CHUNK = 512
SMALLEST_DEFAULT_CHUNK = 64
LARGEST_CHUNK_BYTES = 256 * 2**20
"""Largest size of a chunk's pixels by default. Several chunks are in memory at the same time."""
CHUNKS_PER_ACTOR = 8
CHUNKS_PER_DECODER = 4
LAST_FILES = 8
"""Number of files that are searched for an image which an earlier run fetched from a web server."""


def default_chunk_size(num_images: int, resources: Plan, bytes_per_image: int) -> int:
    """Return the number of images per chunk: large enough that Ray's overhead of 20 ms per chunk is negligible, small
    enough to keep all workers busy, and such that the pixels of a chunk fit into memory.
    """
    num_chunks = max(CHUNKS_PER_ACTOR * resources.num_actors, CHUNKS_PER_DECODER * resources.num_decoders)
    even = math.ceil(num_images / num_chunks)
    largest = max(1, min(LARGEST_DEFAULT_CHUNK, LARGEST_CHUNK_BYTES // bytes_per_image))
    return min(largest, max(SMALLEST_DEFAULT_CHUNK, even))


def run_rounds(
    job: BatchJob,
    settings: BatchSettings,
    outputs: Mapping[str, ChunkFiles],
    outcome: RunResult,
    todo: list[IdRange],
    redo: Mapping[IdRange, int],
    on_commit: Callable[[FileCounts], None] = lambda rows: None,
) -> None:
    """Process the remaining images in rounds, and record the figures of the run in `outcome`."""
    work, faults = settings.work, settings.faults
    num_todo = total(todo) + sum(redo.values())
    planned = outcome.manifest.num_images
    progress = Progress(planned, planned - num_todo, job.verb, quiet=settings.quiet)
    with contextlib.ExitStack() as stack:
        if single_process.is_small_job(num_todo, work):
            kind: type[Pipeline] = single_process.SingleProcessPipeline
            resources = single_process.single_process_plan(work.num_cpus)
            progress.say(f"{num_todo:,} images are processed in one process (too few to start Ray)")
        else:
            session = stack.enter_context(RaySession(work.address, work.num_cpus, work.num_gpus, progress.say))
            kind, resources = Pipeline, plan(session.nodes(), work.num_actors, job.needs)
            progress.say(f"{num_todo:,} images are processed with {resources}")
        outcome.phases["ray"] = progress.seconds
        fetch = DecodeStage(
            outcome.manifest,
            outcome.files,
            job.transform,
            resources.decode_threads,
            Sources(settings.inputs, settings.source).local_roots(),
            settings.source.image_column,
            settings.access,
            resources.num_decoders,
        )
        factory = PassthroughColumns(job.factory(resources), outcome.manifest.columns() or NO_COLUMNS)
        pipeline = kind(fetch, factory, outputs, resources, job.sidecar)
        patience = 8 + 2 * resources.num_actors
        rows = outcome.files.totals()
        tracker = ChunkTracker(outcome.files, progress, faults.max_error_share, patience, rows, redo, on_commit)
        size = work.images_per_chunk or default_chunk_size(num_todo, resources, job.transform.largest_bytes)
        chunks = [Chunk(ids, "errors" if settings.retry_errors else "deferred") for ids in redo]
        chunks += [Chunk(ids) for ids in cut(todo, size)]
        for url in earlier_answers(outcome.files, outcome.manifest):
            tracker.note_answer(url)
        pause, tries_left = faults.transport_pause, faults.transport_retries
        try:
            with progress:
                rounds = deque([chunks])
                while rounds:
                    chunks = rounds.popleft()
                    with contextlib.closing(pipeline.receipts(chunks)) as receipts:
                        ended = tracker.consume(chunks, receipts)
                    for chunk in ended.poison:
                        _write_poison_row(chunk.ids, outcome.manifest, factory, outputs)
                        progress.add(0, 1)
                        tracker.count(chunk, FileCounts(failed=1))
                    # From the second round on, a canary that answers shows that the network is not at fault.
                    again = [chunk._replace(canaries=tuple(tracker.canaries)) for chunk in ended.left]
                    rounds += [again] if again else []
                    rounds += [[chunk] for chunk in ended.suspected]
                    if not ended.left:
                        continue
                    left = f"{num_todo - progress.images:,} images remain ({tracker.last_reason})"
                    if ended.unforeseen:
                        # Waiting would not help. Remaining chunks are split further, so that good images get rows.
                        stuck = ended.repeated and not ended.made_progress
                        if stuck and (ended.smallest or not progress.images):
                            raise JobIncomplete(str(tracker.failures.last))
                        progress.say(f"{left}; retrying at once, in smaller chunks")
                        continue
                    if ended.made_progress:
                        pause, tries_left = faults.transport_pause, faults.transport_retries
                    elif not tries_left:
                        raise JobIncomplete(tracker.last_reason)
                    else:
                        tries_left -= 1
                    progress.say(f"{left}; retrying in {format_seconds(pause)}")
                    time.sleep(pause)
                    pause *= 3
        finally:
            outcome.images = progress.images
            outcome.start_up_seconds = progress.start_up_seconds
            outcome.phases["first images"] = progress.start_up_seconds - outcome.phases["ray"]
            outcome.phases["other images"] = progress.seconds - progress.start_up_seconds
            outcome.images_per_second = progress.images_per_second
            outcome.rates = progress.rates
            outcome.run["seconds_by_step"] = {step: round(spent, 1) for step, spent in tracker.seconds.items()}


def earlier_answers(files: ChunkFiles, manifest: Manifest) -> list[str]:
    """Return the URL of an image that an earlier run fetched, from the newest file that has one."""
    for ids in reversed(files.finished()[-LAST_FILES:]):
        rows = files.read(ids, ["image_id", "path", "error"])
        came = pc.and_(pc.is_null(rows.column("error")), pc.match_substring_regex(rows.column("path"), "^https?://"))
        found = rows.filter(came).column("image_id").to_pylist()
        if found:  # the rows have no signatures any more
            return [manifest.read(IdRange(found[-1], found[-1])).column("path")[0].as_py()]
    return []


def _write_poison_row(
    ids: IdRange, manifest: Manifest, factory: ProcessorFactory, outputs: Mapping[str, ChunkFiles]
) -> None:
    """Write an error row for an image that killed every process that worked on it, without touching it again."""
    image = manifest.read(ids).to_pylist()[0]
    carried = {**image, **image.get("columns", {})}
    known = {
        **{name: masked(value) if isinstance(value, str) else value for name, value in carried.items()},
        "error": "WorkerDied: each process that worked on this image died, several times",
    }
    for name, schema in factory.schemas().items():
        rows = [pa.array([known.get(column.name)], column.type) for column in schema]
        outputs[name].write(ids, pa.table(rows, schema=schema))
