"""Says when a process of a batch job has died. Ray replaces it and tries its work again, without a word to the user."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_TO_END = 10.0
SECONDS_BETWEEN_SAME = 60.0
"""A sentence is not repeated earlier: an image may kill one process after the other."""
_SYSTEM_ERROR, _OUT_OF_MEMORY = 0, 4
_OF_MODEL = "ModelStage"
"""Occurs in the class names of Ray Data's actors that run the model."""
_NODE_LOST = re.compile(r"\bnode\b.*\b(died|dead|failed|lost)\b", re.IGNORECASE)

Process = tuple[str, int]
"""Node id in Ray, and process id."""


class WorkerDeaths:
    """Watches the processes of this job in Ray's tables during a `with` block, from a thread.

    Args:
        say: prints a line for the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="worker deaths", daemon=True)
        self._models: set[Process] = set()
        self._num_restarts = 0
        self._reported: set[Process] = set()
        self._said: dict[str, float] = {}

    def __enter__(self) -> WorkerDeaths:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(SECONDS_TO_END)  # Ray may end next, and must not be asked while it does

    def _watch(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            with contextlib.suppress(Exception):  # Ray's head may be gone, which `HeadWatch` reports
                self.look(*_models(), _workers())

    def look(self, models: set[Process], num_restarts: int, workers: list[Any]) -> None:
        """Report those workers that have died since the last look.

        Args:
            models: processes with a model that are running.
            num_restarts: of these actors, so far.
            workers: rows of Ray's worker table, of this job.
        """
        dead = {
            process: worker
            for worker in workers
            if not worker.is_alive and worker.exit_type in (_SYSTEM_ERROR, _OUT_OF_MEMORY)
            if (process := (worker.worker_address.node_id.hex(), worker.pid)) not in self._reported
        }
        with_model = dead.keys() & self._models
        # An actor that died right after its start was never seen alive.
        unseen = max(0, num_restarts - self._num_restarts - len(with_model))
        for process, worker in dead.items():
            is_model = process in with_model
            if not is_model and unseen:
                is_model, unseen = True, unseen - 1
            what = "a process with the model" if is_model else "a decoding process"
            self._say_once(f"{what} on {_host(worker)} died: {_how(worker)}. Ray replaces it and tries its chunk again")
        self._reported |= dead.keys()
        self._models |= models
        self._num_restarts = num_restarts

    def _say_once(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said.get(text, -SECONDS_BETWEEN_SAME) >= SECONDS_BETWEEN_SAME and not self._is_over.is_set():
            self._said[text] = now
            self.say(text)


def _how(worker: Any) -> str:
    if worker.exit_type == _OUT_OF_MEMORY:
        return "Ray killed it, because the machine was low on memory"
    if _NODE_LOST.search(worker.exit_detail):
        return "its machine was lost"
    return "it ended without an exception (killed, perhaps for want of memory, or crashed in a library)"


def _models() -> tuple[set[Process], int]:
    """Return the running processes with a model of this job, and how often such a process was restarted."""
    import ray
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    found = [actor for actor in actors().values() if _OF_MODEL in actor["ActorClassName"] and actor["JobID"] == job]
    alive = {(actor["Address"]["NodeID"], actor["Pid"]) for actor in found if actor["State"] == "ALIVE"}
    return alive, sum(actor["NumRestarts"] for actor in found)


def _workers() -> list[Any]:
    """Rows of Ray's table of workers, dead ones included, of this job."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    job = ray.get_runtime_context().get_job_id()
    rows = (gcs_pb2.WorkerTableData.FromString(row) for row in state._connect_and_get_accessor().get_worker_table())
    # Older versions of Ray do not say whose a worker is.
    return [row for row in rows if getattr(row, "job_id", b"").hex() in ("", job) and row.worker_type == 0]


def _host(worker: Any) -> str:
    import ray

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()} if ray.is_initialized() else {}
    return nodes.get(worker.worker_address.node_id.hex(), worker.worker_address.ip_address)
