"""Few images: both stages in one process beside the job's own, without Ray, whose start would take longer than they do.

A process of its own because an image can kill it, by a library's fault or for memory, and the job must live to say so.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.model_stage import ModelStage, ProcessorFactory
from jobs.batch.ray_pipeline import Pipeline, PipelineError, as_table
from jobs.batch.settings import WorkSettings
from jobs.cluster.resources import Plan, num_cpus
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.sidecar import Sidecar

SMALL_JOB_IMAGES = 200
"""On two CPUs Ray takes 16 seconds to its first images; this process takes 5, and does 200 in 4 more."""
SMALL_GPU_JOB_IMAGES = 2_000
"""A GPU does more of them in the time that Ray takes to start."""
ATTEMPTS_PER_CHUNK = 2
"""Of a chunk at which the process dies."""


def is_small_job(num_images: int, work: WorkSettings) -> bool:
    """Whether images are to be done beside the job: they are few, and nothing asks for Ray.

    A machine with several GPUs goes to Ray, which uses all of them.
    """
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    few = SMALL_GPU_JOB_IMAGES if gpus else SMALL_JOB_IMAGES
    for_ray = (work.address, os.environ.get("RAY_ADDRESS"), work.num_actors, work.num_gpus)
    return num_images <= few and not any(for_ray) and not _ray_is_here() and gpus <= 1


def single_process_plan(cpus: int | None) -> Plan:
    """One process that decodes, and then lets the model work, each with all CPUs (or so many)."""
    cpus = cpus or num_cpus()
    return Plan(1, cpus, 0, cpus, cpus / 2, 1)


@dataclass(frozen=True)
class SingleProcessPipeline(Pipeline):
    """The stages of `Pipeline` in a process of their own."""

    def receipts(self, chunks: Sequence[Chunk]) -> Generator[dict[str, Any]]:
        """As `Pipeline.receipts`.

        Raises:
            PipelineError: the model cannot be loaded.
        """
        left, tries = deque(chunks), 0
        while left:
            with self._process(left) as answers:
                for answer in answers:
                    if isinstance(answer, str):
                        raise PipelineError(f"the model cannot be loaded: {answer}")
                    yield answer
                    left.popleft()
                    tries = 0
            tries += 1
            if left and tries == ATTEMPTS_PER_CHUNK:
                left.popleft()
                tries = 0

    @contextlib.contextmanager
    def _process(self, chunks: Sequence[Chunk]) -> Iterator[Iterator[Any]]:
        """A process that works on chunks; its answers, until it has done them or is dead."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = SpawnProcess(
            target=_work,
            args=(self.fetch, self.factory, self.outputs, self.sidecar, list(chunks), theirs),
            daemon=True,
        )
        with _without_interrupts():
            process.start()
        theirs.close()
        try:
            yield _answers(ours)
        finally:
            ours.close()
            process.terminate()
            process.join()


def _work(
    fetch: DecodeStage,
    factory: ProcessorFactory,
    outputs: Mapping[str, ChunkFiles],
    sidecar: Sidecar | None,
    chunks: Sequence[Chunk],
    answers: Connection,
) -> None:
    """What the process does: a receipt for each chunk, or a text that says why there can be none."""
    logging.disable(logging.CRITICAL)  # receipts say what went wrong
    with contextlib.suppress(OSError):  # of the pipe: the job is gone
        try:
            worker = ModelStage(factory, outputs, sidecar)
        except Exception as error:
            answers.send(f"{type(error).__name__}: {error}")
            return
        for chunk in chunks:
            answers.send(worker(fetch(as_table(chunk))).to_pylist()[0])


def _answers(pipe: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield pipe.recv()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C, which a terminal sends to all: the job ends them."""
    resource_tracker.ensure_running()  # which would let them through again, where it is started with the first process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ray_is_here() -> bool:
    """Whether Ray runs in this process already, as in a program that calls the job."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
