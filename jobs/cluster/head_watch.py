"""Ends a command with a sentence when Ray has died under it; Ray itself would end the process without a word."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.cli.exit_codes import end_at_once

GCS_TIMEOUT = "RAY_gcs_rpc_server_reconnect_timeout_s"
GCS_SECONDS = 60.0
"""Seconds without Ray's head (its GCS) after which Ray ends the processes of a cluster, by default."""
EARLIER_SECONDS = 20.0
"""So many seconds before that, the job ends itself."""
RAYLET_SECONDS = 2.0
"""A raylet that is gone does not come back."""
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Watched:
    """A process of Ray that this one cannot do without."""

    what: str
    connect: Callable[[], None]
    """Raises OSError if the process does not answer."""
    seconds: float
    """After which it counts as dead."""


class HeadWatch:
    """Watches processes of Ray during a `with` block, from a thread.

    When one of them has died, the main thread may be inside a call that does not return, so the process is ended at
    once; the output is as after any other kill.

    Args:
        watched: may be replaced at any time.
    """

    def __init__(self, watched: Sequence[Watched] = ()) -> None:
        self.watched = watched
        self._is_over = threading.Event()

    def __enter__(self) -> HeadWatch:
        threading.Thread(target=self._watch, name="head watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _watch(self) -> None:
        answered: dict[Watched, float] = {}
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            for one in self.watched:
                answered.setdefault(one, time.monotonic())
                try:
                    one.connect()
                    answered[one] = time.monotonic()
                except OSError:
                    silence = time.monotonic() - answered[one]
                    if silence >= one.seconds and not self._is_over.is_set():
                        end_at_once(
                            f"{one.what} has not answered for {silence:.0f} seconds; it was killed, or its host is gone"
                        )


def processes_of_ray() -> list[Watched]:
    """Return the GCS of the cluster and the raylet of this machine, for a process that is connected to them."""
    import ray
    from ray._private.worker import global_worker

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    timeout = float(os.environ.get(GCS_TIMEOUT, GCS_SECONDS))
    gcs = Watched(
        f"Ray's head process at {host}:{port}",
        lambda: socket.create_connection((host, int(port)), 5).close(),
        max(RAYLET_SECONDS, timeout - EARLIER_SECONDS),
    )
    path = getattr(global_worker.node, "raylet_socket_name", None)
    if path is None or not os.path.exists(path):
        return [gcs]
    return [gcs, Watched("Ray's process on this machine (the raylet)", lambda: _connect(path), RAYLET_SECONDS)]


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
