"""A job's parts through Ray Data: one row per part → decoding tasks → model actors → a stream of receipts.

Ray decides where and when; what is finished is decided by the files that the actors write, so a part that Ray
loses or does twice harms nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from jobs import schemas
from jobs.outputs import PartFiles
from jobs.resources import Node, Plan
from jobs.stages import FetchAndDecode, Part, PartWorker, ProcessorFactory

LOST_PARTS_LIMIT = 100
"""Parts whose workers died, again and again, before the run is given up as a whole."""


class PipelineError(RuntimeError):
    """Ray cannot do the job; the message is the last line of what it says."""


class RaySession:
    """A Ray cluster for the length of a `with`: the one at an address, or one on this machine.

    A Ray that runs in this process already is used and left running.

    Args:
        address: as for `ray.init`; None means RAY_ADDRESS, or else this machine.
        num_cpus: CPUs that a Ray on this machine may use; None for all.
    """

    def __init__(self, address: str | None = None, num_cpus: int | None = None) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS")
        self.num_cpus = num_cpus
        self._is_mine = False

    def __enter__(self) -> RaySession:
        # What Ray says of itself is for its log files; a person sees the job's own progress.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if not ray.is_initialized():
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            if self.address:
                options["address"] = self.address
            else:
                options |= {"address": "local", "include_dashboard": False, "num_cpus": self.num_cpus}
            on_terminate = signal.getsignal(signal.SIGTERM)
            with _stderr_only_on_failure():
                ray.init(**options)
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler exits on the spot
            self._is_mine = True
        _quieten_ray_data()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_mine:
            import ray

            ray.shutdown()

    def nodes(self) -> list[Node]:
        """The machines of the cluster, with what Ray may use of them."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]


@dataclass(frozen=True)
class Pipeline:
    """The two stages, ready to be run over any parts."""

    fetch: FetchAndDecode
    factory: ProcessorFactory
    outputs: Mapping[str, PartFiles]
    plan: Plan

    def receipts(self, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        """Do the parts, and yield a receipt (`schemas.RECEIPT`) for each as it comes in, in any order.

        A part whose worker died repeatedly has no receipt. Closing the iterator stops the work.

        Raises:
            PipelineError: the model's actors cannot start, or too many workers die.
        """
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # a queue for a GPU or a spot machine may be long
        context.max_errored_blocks = LOST_PARTS_LIMIT
        plan = self.plan
        # A block per part: with fewer, Ray would give many parts to one task.
        rows = [(*part.ids, part.redo_errors) for part in parts]
        blocks = [pa.Table.from_arrays([pa.array([v]) for v in row], schema=schemas.PART) for row in rows]
        dataset = (
            ray.data.from_arrow(blocks)
            .map_batches(
                self.fetch,
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=plan.decode_cpus,
                **_remote_args(max_retries=3),
            )
            .map_batches(
                PartWorker,
                fn_constructor_args=(self.factory, self.outputs),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(plan.num_actors, len(parts))),
                num_cpus=plan.actor_cpus,
                num_gpus=plan.actor_gpus,
                # A dead actor is replaced, but a part that kills it every time must not go on for ever.
                **_remote_args(max_restarts=-1, max_task_retries=3),
            )
        )
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        try:
            for batch in batches:
                yield from batch.to_pylist()
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line and not line.startswith((" ", "\t"))]
            raise PipelineError(f"Ray gave up: {lines[-1] if lines else type(error).__name__}") from error


def _remote_args(**wanted: int) -> dict[str, int]:
    """Options of Ray's tasks and actors, where this version of Ray Data still passes them on.

    Without them it retries for ever.
    """
    import ray

    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    return wanted if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) else {}


@contextlib.contextmanager
def _stderr_only_on_failure() -> Iterator[None]:
    """Ray's C++ part writes to stderr by itself, past Python's logging: keep it, and show it if the body fails."""
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(real, 2)
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def _quieten_ray_data() -> None:
    import ray

    logger = logging.getLogger(ray.data.__name__)  # importing it is what sets its handlers
    for handler in logger.handlers:
        if "Session" not in type(handler).__name__:  # the session's log file still gets everything
            handler.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", ".*ray_remote_args", DeprecationWarning)
