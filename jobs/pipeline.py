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
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pyarrow as pa

from jobs import schemas
from jobs.outputs import PartFiles
from jobs.resources import Node, Plan
from jobs.stages import FetchAndDecode, Part, PartWorker, ProcessorFactory

SECONDS_BETWEEN_NOTES = 30
"""While machines are waited for."""
LOST_PARTS_LIMIT = 100
"""Parts whose workers died, again and again, before the run is given up as a whole."""


class PipelineError(RuntimeError):
    """Ray cannot do the job; the message is the last line of what it says."""


class RaySession:
    """A Ray cluster for the length of a `with`: the one at an address, or one on this machine.

    A Ray that runs in this process already is used and left running.

    Args:
        address: as for `ray.init`; None means RAY_ADDRESS, or else this machine.
        num_cpus: CPUs that a Ray on this machine may use, or that a cluster must have; None for those there are.
        num_gpus: GPUs, likewise.
        say: where it is said what is waited for.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS")
        self.num_cpus, self.num_gpus, self.say = num_cpus, num_gpus, say
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
                options |= {"address": "local", "include_dashboard": False}
                options |= {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
            with _stderr_only_on_failure(), _own_signal_handler():
                ray.init(**options)
            self._is_mine = True
        _quieten_ray_data()
        if self.address:
            self._wait_for_machines()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_mine:
            import ray

            ray.shutdown()

    def _wait_for_machines(self) -> None:
        """Have the cluster grow to the CPUs and GPUs that were asked for.

        By a placement group, which is given back at once: unlike `request_resources`, it ends with this process, so
        that a job which is killed does not keep machines.
        """
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        wanted = {"GPU": self.num_gpus or 0, "CPU": self.num_cpus or 0}

        def there() -> dict[str, float]:
            found = ray.cluster_resources()
            return {kind: found.get(kind, 0.0) for kind in wanted}

        if all(there()[kind] >= count for kind, count in wanted.items()):
            return
        group = placement_group([{kind: 1.0} for kind, count in wanted.items() for _ in range(count)])
        waited = 0
        while not group.wait(SECONDS_BETWEEN_NOTES if waited else 1):
            have = there()
            self.say(
                "waiting for "
                + " and ".join(f"{count} {kind}s ({have[kind]:g} are there)" for kind, count in wanted.items() if count)
            )
            waited += 1
        remove_placement_group(group)

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

    def receipts(self, parts: Sequence[Part]) -> Generator[dict[str, Any]]:
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
                # Two calls at once: one part is written while the model works on the next.
                compute=ray.data.ActorPoolStrategy(
                    size=min(plan.num_actors, len(parts)),
                    max_tasks_in_flight_per_actor=3,
                    max_concurrent_calls_per_actor=2,
                    enable_true_multi_threading=True,
                ),
                num_cpus=plan.actor_cpus,
                num_gpus=plan.actor_gpus,
                # A dead actor is replaced, but a part that kills it every time must not go on for ever.
                **_remote_args(max_restarts=-1, max_task_retries=3),
            )
        )
        batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
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
def _own_signal_handler() -> Iterator[None]:
    """Keep what this process does at SIGTERM: Ray's own handler exits on the spot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stderr_only_on_failure() -> Iterator[None]:
    """Ray's C++ part writes to stderr by itself, past Python's logging: keep it, and show it if the body fails.

    Raises:
        PipelineError: the body failed for want of a token.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException as error:
            os.dup2(real, 2)
            kept.seek(0)
            said = kept.read().decode(errors="replace")
            if "InvalidAuthToken" in said:
                raise PipelineError(
                    "the Ray cluster wants a token: set RAY_AUTH_MODE=token, and have its token in ~/.ray/auth_token"
                ) from error
            sys.stderr.write(said)
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
