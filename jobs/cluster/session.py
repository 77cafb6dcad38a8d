"""Connects to a Ray cluster or starts Ray on this machine, for the duration of a job."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from captionlib.errors import CaptionlibError, UserError
from jobs.cluster.autoscaling import autoscaler_status
from jobs.cluster.resources import Node

SECONDS_BETWEEN_NOTES = 30
"""Seconds between messages while the job waits for machines."""
CONNECT_SECONDS = 20.0
STARTS = 3
"""Number of attempts to start Ray. Ray allows a machine 30 seconds, which a busy one may exceed."""

_SLOW = re.compile("timed out during startup|Timed out waiting for file")
LEAST_BYTES = 2**20
"""Of free space on the disk for Ray's files; below, it counts as full."""


class ClusterError(CaptionlibError, ConnectionError):
    """Ray is not available. The message states the reason and what to do."""


class RaySession:
    """A Ray cluster for the duration of a `with` block: the one at an address, or one on this machine.

    If Ray already runs in this process, it is used and left running.

    Args:
        address: as for `ray.init`; None uses RAY_ADDRESS, or else this machine; "local" always uses this machine.
        num_cpus: CPUs that Ray may use on this machine, or that a cluster must have; None for all.
        num_gpus: the same for GPUs.
        say: prints what the job waits for.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        address = address or os.environ.get("RAY_ADDRESS")
        self.address = None if address == "local" else address
        self.num_cpus, self.num_gpus, self.say = num_cpus, num_gpus, say
        self._is_mine = False

    def __enter__(self) -> RaySession:
        # Ray's own messages belong to its log files; the user sees the progress of the job.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Else a lost machine may make Ray print a traceback about its own statistics every five seconds. Failures of
        # the job's tasks reach the job in any case.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if not ray.is_initialized():
            if self.address:
                _check_address(self.address)
                self._start({"address": self.address})
            else:
                self._check_gpus()
                options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "include_dashboard": False}
                with _loopback_only():
                    self._start({"address": "local", **options})
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

            _forget_locals(error)
            ray.shutdown()

    def _start(self, options: dict[str, Any]) -> None:
        """Connect to Ray or start it.

        Raises:
            ClusterError: this failed for a known reason.
        """
        import ray

        for attempt in range(STARTS):
            said = _Stderr()
            try:
                with said, _own_signal_handler():
                    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
                return
            except Exception as error:
                ray.shutdown()  # stops the parts that had been started
                was_slow = _SLOW.search(str(error)) is not None and _full_disk() is None
                if was_slow and attempt < STARTS - 1:
                    self.say("Ray did not start within 30 seconds, this machine is busy; retrying")
                    continue
                reason = _explain(error, said.text, self.address)
                if reason is None:
                    sys.stderr.write(said.text)
                    raise
                raise ClusterError(reason) from error

    def _check_gpus(self) -> None:
        """Check that this machine has the requested GPUs; Ray would accept any number.

        Raises:
            UserError: it has fewer.
        """
        if self.num_gpus:
            import torch

            found = torch.cuda.device_count()
            if found < self.num_gpus:
                raise UserError(f"--num-gpus {self.num_gpus}: this machine has {found} that PyTorch can use")

    def _wait_for_machines(self) -> None:
        """Wait until the cluster has the requested CPUs and GPUs, and make it grow if it can.

        A placement group requests the machines and is removed afterwards. Unlike `request_resources`, it ends with this
        process, so a killed job does not keep machines.
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
        next_note = time.monotonic()
        while not group.wait(1):  # waits only briefly, so that Ctrl-C and SIGTERM are handled
            if time.monotonic() < next_note:
                continue
            next_note = time.monotonic() + SECONDS_BETWEEN_NOTES
            have = there()
            missing = " and ".join(
                f"{n} {kind}{'s' if n > 1 else ''} ({have[kind]:g} are there)" for kind, n in wanted.items() if n
            )
            growth = autoscaler_status(ray.get_runtime_context().gcs_address)
            if growth == "impossible":
                raise ClusterError(
                    f"{missing} were asked for, which this cluster cannot provide: the machine types that it may add "
                    "do not suffice. Ask for fewer with --num-gpus and --num-cpus, or raise max_workers"
                )
            by_hand = (
                "; the cluster has no autoscaler, so start them yourself, or stop the job" if growth == "none" else ""
            )
            self.say(f"waiting for {missing}{by_hand}")
        remove_placement_group(group)

    def nodes(self) -> list[Node]:
        """Return the machines of the cluster with the resources that Ray may use."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [
            Node(found.get("CPU", 0.0), found.get("GPU", 0.0), found.get("memory", math.inf) / 2**30) for found in alive
        ]


def _forget_locals(error: BaseException | None) -> None:
    """Release what the functions that an error has left still hold.

    An iterator of Ray Data that is among it would end its work only after Ray has, with a traceback and a new Ray.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


@contextlib.contextmanager
def _own_signal_handler() -> Iterator[None]:
    """Keep this process's SIGTERM handler, because Ray's own handler exits immediately."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have a Ray that is started in the `with` listen on 127.0.0.1 only, as Ray does by itself on macOS and Windows.

    Its servers execute what they are sent, so those of a job on one machine must not be reachable from others. Ray
    reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER, which decides this, only when it is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _check_address(address: str) -> None:
    """Check that something answers at `host:port`, because Ray itself would retry for minutes.

    Raises:
        ClusterError: nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" or another keyword of Ray
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"there is no Ray cluster at {address}, or this machine cannot reach it ({error}): check the address and "
            "the port"
        ) from error


class _Stderr:
    """Captures stderr within a `with` block, including what Ray's C++ code writes past Python's logging."""

    text = ""

    def __enter__(self) -> None:
        sys.stderr.flush()
        self._real = os.dup(2)
        self._kept = tempfile.TemporaryFile()
        os.dup2(self._kept.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._real, 2)
        os.close(self._real)
        self._kept.seek(0)
        self.text = self._kept.read().decode(errors="replace")
        self._kept.close()


def _explain(error: Exception, said: str, address: str | None) -> str | None:
    """Return why Ray could not be reached or started and what to do; None if the reason is unknown."""
    from ray.exceptions import AuthenticationError

    text = f"{said}\n{error}\n{error.__cause__}"
    if "InvalidAuthToken" in text or isinstance(error, AuthenticationError):
        return (
            f"the Ray cluster at {address} requires its token: set RAY_AUTH_MODE=token, and have the token in "
            "~/.ray/auth_token, or its file's name in RAY_AUTH_TOKEN_PATH"
        )
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if "Version mismatch" in text and len(versions) >= 2:
        (there, python_there), (here, python_here) = versions[:2]
        return (
            f"the Ray cluster at {address} is Ray {there} on Python {python_there}, this is Ray {here} on Python "
            f"{python_here}: both must be the same, so install the cluster's versions here, or these there"
        )
    if "Could not find any running Ray instance" in text:
        return (
            f"--address {address} finds no Ray on this machine: start the job with `ray job submit`, which runs it "
            "on the cluster, or leave --address out to use this machine alone"
        )
    if isinstance(error, ConnectionError) and address:
        return (
            f"this machine is not part of the Ray cluster at {address}, or what answers there is no Ray: start the job "
            "on the cluster itself, with `ray job submit`"
        )
    full = None if address else _full_disk()
    if full is not None:
        return f"Ray does not start on this machine: the disk of {full} is full; free some space, or set RAY_TMPDIR"
    if _SLOW.search(text):
        return f"Ray does not start on this machine, {STARTS} times 30 seconds were not enough: it is too busy"
    return None


def _full_disk() -> str | None:
    """Return the folder for Ray's files if its disk is full."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with contextlib.suppress(OSError):
        return folder if shutil.disk_usage(folder).free < LEAST_BYTES else None
    return None


def _quieten_ray_data() -> None:
    import ray

    logger = logging.getLogger(ray.data.__name__)  # importing ray.data creates the handlers
    for handler in logger.handlers:
        if "Session" not in type(handler).__name__:  # the log file of the session still receives everything
            handler.setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # a full disk for Ray's logs is no reason to print a traceback for each line
    warnings.filterwarnings("ignore", ".*ray_remote_args", DeprecationWarning)
