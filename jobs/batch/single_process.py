"""Runs small jobs in a single subprocess, because starting Ray would take longer than the work itself.

The work runs in a process of its own, because an image can kill it through a bug of a library or lack of memory, and
the job must survive to report that.
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
from jobs.batch.failures import named
from jobs.batch.model_stage import ModelStage, ProcessorFactory
from jobs.batch.ray_pipeline import Pipeline, PipelineError, as_table
from jobs.batch.settings import WorkSettings
from jobs.cluster.resources import Plan, num_cpus
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.sidecar import Sidecar

SMALL_JOB_IMAGES = 200
"""Largest small job. On two CPUs Ray needs 16 s until the first images; this process needs 5 s, and 4 s more for
200 images."""
SMALL_GPU_JOB_IMAGES = 2_000
"""Largest small job with a GPU, which processes more images while Ray would start."""
ATTEMPTS_PER_CHUNK = 2
"""Number of attempts for a chunk that kills the process."""
SECONDS_TO_DIE = 10.0
"""A process whose answers have ended has so long to end itself."""


def is_small_job(num_images: int, work: WorkSettings) -> bool:
    """Whether a job runs without Ray: it has few images, and no setting asks for Ray.

    On a machine with several GPUs Ray is used, because it uses all of them.
    """
    gpus = _num_gpus()
    few = SMALL_GPU_JOB_IMAGES if gpus else SMALL_JOB_IMAGES
    for_ray = (work.address, os.environ.get("RAY_ADDRESS"), work.num_actors, work.num_gpus)
    return num_images <= few and not any(for_ray) and not _ray_is_here() and gpus <= 1


def single_process_plan(cpus: int | None) -> Plan:
    """Return the plan for one process that decodes and then runs the model, each with all CPUs (or `cpus`)."""
    cpus = cpus or num_cpus()
    return Plan(1, cpus, min(1, _num_gpus()), cpus, cpus / 2, 1)


def _num_gpus() -> int:
    """Count the GPUs of this machine without importing PyTorch."""
    return len(glob.glob("/dev/nvidia[0-9]*"))


@dataclass(frozen=True)
class SingleProcessPipeline(Pipeline):
    """The stages of `Pipeline`, run in a subprocess."""

    def receipts(self, chunks: Sequence[Chunk]) -> Generator[dict[str, Any]]:
        """Process the chunks as `Pipeline.receipts` does.

        Raises:
            PipelineError: the model cannot be loaded.
        """
        left, tries = deque(chunks), 0
        while left:
            with self._process(left) as (process, answers):
                for answer in answers:
                    if isinstance(answer, str):
                        raise PipelineError(f"the model cannot be loaded: {answer}")
                    yield answer
                    left.popleft()
                    tries = 0
                process.join(SECONDS_TO_DIE)
            tries += 1
            if not left:
                return
            is_last = tries == ATTEMPTS_PER_CHUNK
            self.say(
                f"the process that decodes images and runs the model died at {named(left[0].ids)}: "
                f"{_how_it_died(process.exitcode)}. "
                + ("They are tried again later, in smaller chunks" if is_last else "Another process tries them again")
            )
            if is_last:
                left.popleft()
                tries = 0

    @contextlib.contextmanager
    def _process(self, chunks: Sequence[Chunk]) -> Iterator[tuple[SpawnProcess, Iterator[Any]]]:
        """Start a process for the chunks; yield it and its answers until it finishes or dies."""
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
            yield process, _answers(ours)
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
    """Body of the process: send a receipt for each chunk, or a text that states why the model cannot be loaded."""
    logging.disable(logging.CRITICAL)  # errors are reported in the receipts
    with contextlib.suppress(OSError):  # a broken pipe means that the job has ended
        try:
            worker = ModelStage(factory, outputs, sidecar)
        except Exception as error:
            answers.send(f"{type(error).__name__}: {error}")
            return
        for chunk in chunks:
            answers.send(worker(fetch(as_table(chunk))).to_pylist()[0])


def _how_it_died(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            by = signal.Signals(-exit_code).name
            return f"ended by {by}" + (", perhaps for want of memory" if by == "SIGKILL" else "")
    return f"it ended without an exception (exit code {exit_code})"


def _answers(pipe: Connection) -> Iterator[Any]:
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            yield pipe.recv()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for processes started here, because a terminal sends it to all of them; the job ends them itself."""
    resource_tracker.ensure_running()  # its start unblocks the signal, so it must run before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ray_is_here() -> bool:
    """Whether Ray is already running in this process, as in a program that calls the job."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
