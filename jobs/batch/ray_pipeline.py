"""Runs chunks through Ray Data: one row per chunk → decoding tasks → model actors → a stream of receipts.

Ray schedules the work. The files that the actors write determine what is finished, so a chunk that Ray loses or
processes twice does no harm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from captionlib.errors import CaptionlibError
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.model_stage import ModelStage, ProcessorFactory
from jobs.cluster.resources import Plan
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.sidecar import Sidecar

LOST_CHUNKS_LIMIT = 100
"""Number of chunks whose workers may die repeatedly before the run is stopped."""


class PipelineError(CaptionlibError, RuntimeError):
    """Ray cannot run the job. The message is the last line of Ray's error."""


@dataclass(frozen=True)
class Pipeline:
    """The two stages, ready to process any chunks."""

    fetch: DecodeStage
    factory: ProcessorFactory
    outputs: Mapping[str, ChunkFiles]
    plan: Plan
    say: Callable[[str], None] = print
    """Prints a line for the user."""
    sidecar: Sidecar | None = None
    decoding_bytes: int | None = None
    """Memory that Ray sets aside for each decoding task; None for what it takes by default."""

    def receipts(self, chunks: Sequence[Chunk]) -> Generator[dict[str, Any]]:
        """Process the chunks and yield a receipt (`schemas.RECEIPT`) for each as it arrives, in any order.

        A chunk whose worker died repeatedly has no receipt. Closing the iterator stops the work.

        Raises:
            PipelineError: the actors cannot start, or too many workers die.
        """
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # waiting for a GPU or a spot machine may take long
        context.max_errored_blocks = LOST_CHUNKS_LIMIT
        plan = self.plan
        # One block per chunk; with fewer blocks, Ray would give many chunks to one task.
        dataset = (
            ray.data.from_arrow([as_table(chunk) for chunk in chunks])
            .map_batches(
                self.fetch,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=plan.decode_cpus,
                memory=self.decoding_bytes,
                **_remote_args(max_retries=3),
            )
            .map_batches(
                ModelStage,
                fn_constructor_args=(self.factory, self.outputs, self.sidecar),
                batch_size=1,
                batch_format="pyarrow",
                # Two concurrent calls: one chunk is written while the model works on the next.
                compute=ray.data.ActorPoolStrategy(
                    size=min(plan.num_actors, len(chunks)),
                    # On a GPU three concurrent calls: one chunk is encoded, one searched, one written.
                    max_tasks_in_flight_per_actor=4 if plan.actor_gpus else 3,
                    max_concurrent_calls_per_actor=3 if plan.actor_gpus else 2,
                    enable_true_multi_threading=True,
                ),
                num_cpus=plan.actor_cpus,
                num_gpus=plan.actor_gpus,
                # A dead actor is replaced, but a chunk that kills it every time must not be retried forever.
                **_remote_args(max_restarts=-1, max_task_retries=3),
            )
        )
        batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for batch in batches:
                yield from batch.to_pylist()
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line and not line.startswith((" ", "\t"))]
            raise PipelineError(f"Ray stopped: {lines[-1] if lines else type(error).__name__}") from error


def as_table(chunk: Chunk) -> pa.Table:
    """Convert a chunk to the input of the stages: one row of `schemas.CHUNK`."""
    row = (*chunk.ids, chunk.redo, list(chunk.canaries), chunk.pause)
    arrays = [pa.array([value], field.type) for value, field in zip(row, schemas.CHUNK, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schemas.CHUNK)


def _remote_args(**wanted: int) -> dict[str, int]:
    """Return options for Ray's tasks and actors, if this version of Ray Data accepts them.

    Without these options, Ray Data retries without limit.
    """
    import ray

    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    return wanted if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) else {}
