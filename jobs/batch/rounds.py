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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from captionlib.images.decode import MAX_PIXELS
from captionlib.masking import masked
from jobs.batch import single_process
from jobs.batch.canaries import fetched_before
from jobs.batch.chunk_images import is_url
from jobs.batch.chunk_tracker import ChunkTracker
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.job import BatchJob, Figures
from jobs.batch.manifest import NO_COLUMNS, Manifest
from jobs.batch.model_stage import PassthroughColumns, ProcessorFactory
from jobs.batch.ray_pipeline import Pipeline
from jobs.batch.settings import BatchSettings
from jobs.cli.errors import JobIncomplete
from jobs.cli.progress import Progress, format_seconds
from jobs.cluster.head_watch import HeadWatch, processes_of_ray
from jobs.cluster.resources import Plan, check_decoding_memory, decoding_bytes, machine_memory_gib, plan
from jobs.cluster.session import RaySession
from jobs.cluster.worker_deaths import WorkerDeaths
from jobs.inputs.reader import image_refs
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange, cut, total

LARGEST_DEFAULT_CHUNK = 512
SMALLEST_DEFAULT_CHUNK = 64
LARGEST_CHUNK_BYTES = 256 * 2**20
"""Largest size of a chunk's pixels by default. Several chunks are in memory at the same time."""
CHUNKS_PER_ACTOR = 8
CHUNKS_PER_DECODER = 4


def default_chunk_size(num_images: int, resources: Plan, bytes_per_image: int) -> int:
    """Return the number of images per chunk: large enough that Ray's overhead of 20 ms per chunk is negligible, small
    enough to keep all workers busy, and such that the pixels of a chunk fit into memory.
    """
    num_chunks = max(CHUNKS_PER_ACTOR * resources.num_actors, CHUNKS_PER_DECODER * resources.num_decoders)
    even = math.ceil(num_images / num_chunks)
    largest = max(1, min(LARGEST_DEFAULT_CHUNK, LARGEST_CHUNK_BYTES // bytes_per_image))
    return min(largest, max(SMALLEST_DEFAULT_CHUNK, even))


@dataclass(frozen=True)
class Remaining:
    """The images that a run has to process."""

    todo: Sequence[IdRange]
    """Images without a row."""
    redo: Mapping[IdRange, int]
    """Files some of whose rows are processed again, and the number of these rows."""
    rows: FileCounts = FileCounts()  # noqa: RUF009  it is a tuple
    """Rows that earlier runs have written."""

    @property
    def num_images(self) -> int:
        """Number of all these images."""
        return total(self.todo) + sum(self.redo.values())


class Rounds:
    """Processes the remaining images of a job in rounds.

    Args:
        outputs: files by folder name; the last ones mark chunks as finished.
        on_plan: called with the resources before the work begins; may raise UserError.
        on_commit: called with the number of rows in the output after every committed chunk.
    """

    def __init__(
        self,
        job: BatchJob,
        settings: BatchSettings,
        outputs: Mapping[str, ChunkFiles],
        manifest: Manifest,
        remaining: Remaining,
        *,
        on_plan: Callable[[Plan], None] = lambda plan: None,
        on_commit: Callable[[FileCounts], None] = lambda rows: None,
    ) -> None:
        self.job, self.settings, self.outputs = job, settings, outputs
        self.manifest, self.remaining = manifest, remaining
        self.on_plan, self.on_commit = on_plan, on_commit
        self.files = list(outputs.values())[-1]
        planned, count = manifest.num_images, remaining.num_images
        self.progress = Progress(planned, planned - count, job.verb, quiet=settings.quiet)
        self._ray_seconds = 0.0
        self._tracker: ChunkTracker | None = None

    def run(self) -> None:
        """Process the images.

        Raises:
            JobIncomplete: the job cannot continue at present.
        """
        with contextlib.ExitStack() as stack:
            kind, resources = self._connect(stack)
            self._ray_seconds = self.progress.seconds
            self.on_plan(resources)
            factory = PassthroughColumns(self.job.factory(resources), self.manifest.columns() or NO_COLUMNS)
            room = decoding_bytes(self.settings.source.max_pixels)
            pipeline = kind(
                self._decode_stage(resources),
                factory,
                self.outputs,
                resources,
                self.progress.say,
                self.job.sidecar,
                room,
            )
            self._tracker = self._new_tracker(resources)
            with self.progress:
                self._work(pipeline, factory, self._tracker, self._chunks(resources))

    def figures(self) -> Figures:
        """Return the figures of the run, at any moment."""
        progress, start_up = self.progress, self.progress.start_up_seconds
        steps = {} if self._tracker is None else self._tracker.seconds
        return Figures(
            images=progress.images,
            start_up_seconds=start_up,
            images_per_second=progress.images_per_second,
            rates=tuple(progress.rates),
            seconds_by_phase={
                "ray": self._ray_seconds,
                "first images": start_up - self._ray_seconds,
                "other images": max(0.0, progress.last - progress.started - start_up),
            },
            seconds_by_step=dict(steps),
        )

    def _connect(self, stack: contextlib.ExitStack) -> tuple[type[Pipeline], Plan]:
        """Choose between Ray and a single process."""
        work, say, count = self.settings.work, self.progress.say, self.remaining.num_images
        if single_process.is_small_job(count, work):
            check_decoding_memory(self.settings.source.max_pixels, machine_memory_gib())
            say(f"{count:,} images are processed in one process (too few to start Ray)")
            return single_process.SingleProcessPipeline, single_process.single_process_plan(work.num_cpus)
        watch = stack.enter_context(HeadWatch())  # to the end, since leaving a cluster that is dead may block
        session = stack.enter_context(RaySession(work.address, work.num_cpus, work.num_gpus, say))
        watch.watched = processes_of_ray()
        if session.address is None:  # the session will end them itself
            stack.callback(setattr, watch, "watched", ())
        stack.enter_context(WorkerDeaths(say))
        nodes = session.nodes()
        check_decoding_memory(self.settings.source.max_pixels, max(node.memory_gib for node in nodes))
        resources = plan(nodes, work.num_actors, self.job.needs)
        say(f"{count:,} images are processed with {resources}")
        return Pipeline, resources

    def _decode_stage(self, resources: Plan) -> DecodeStage:
        source = self.settings.source
        return DecodeStage(
            self.manifest,
            self.files,
            self.job.transform,
            resources.decode_threads if source.max_pixels <= MAX_PIXELS else 1,
            Sources(self.settings.inputs, source).local_roots(),
            source.image_column,
            source.max_pixels,
            self.settings.access,
            resources.num_decoders,
            source.max_decode_seconds,
        )

    def _new_tracker(self, resources: Plan) -> ChunkTracker:
        tracker = ChunkTracker(
            self.files,
            self.progress,
            self.settings.faults.max_error_share,
            patience=8 + 2 * resources.num_actors,
            rows=self.remaining.rows,
            redo=self.remaining.redo,
            on_commit=self.on_commit,
        )
        for url in fetched_before(self.files, self.manifest):
            tracker.note_answer(url)
        return tracker

    def _chunks(self, resources: Plan) -> list[Chunk]:
        remaining, settings = self.remaining, self.settings
        size = settings.work.images_per_chunk or default_chunk_size(
            remaining.num_images, resources, self.job.transform.largest_bytes
        )
        chunks = [Chunk(ids, "errors" if settings.retry_errors else "deferred") for ids in remaining.redo]
        chunks += [Chunk(ids) for ids in cut(remaining.todo, size)]
        if self._are_urls(chunks[0]):
            # Second attempts follow in the same pipeline, because starting another one costs about 30 s.
            pause = settings.faults.transport_pause
            chunks += [Chunk(chunk.ids, "deferred", pause=pause) for chunk in chunks if chunk.redo != "deferred"]
        return chunks

    def _are_urls(self, chunk: Chunk) -> bool:
        """Whether the inputs are lists of URLs, judging by the first image of a chunk."""
        return is_url(image_refs(self.manifest.read(IdRange(chunk.ids.first, chunk.ids.first)))[0])

    def _work(self, pipeline: Pipeline, factory: ProcessorFactory, tracker: ChunkTracker, chunks: list[Chunk]) -> None:
        """Repeat rounds until nothing remains, with exponential back-off after rounds without progress."""
        faults, progress = self.settings.faults, self.progress
        pause, tries_left = faults.transport_pause, faults.transport_retries
        rounds = deque([chunks])
        while rounds:
            chunks = rounds.popleft()
            with contextlib.closing(pipeline.receipts(chunks)) as receipts:
                ended = tracker.consume(chunks, receipts)
            for chunk in ended.poison:
                _write_poison_row(chunk.ids, self.manifest, factory, self.outputs)
                progress.add(0, 1)
                tracker.count(chunk, FileCounts(failed=1))
            # From the second round on, a canary that answers shows that the network is not at fault.
            again = [chunk._replace(canaries=tuple(tracker.canaries)) for chunk in ended.left]
            rounds += [again] if again else []
            rounds += [[chunk] for chunk in ended.suspected]
            if not ended.left:
                continue
            left = f"{self.remaining.num_images - progress.images:,} images remain ({tracker.last_reason})"
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
