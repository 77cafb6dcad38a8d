"""Where the faults of a night happen: one job after the other, on one machine or a cluster, each with a new output."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import Cluster
from .harness import LocalOutput, Output, Place, Rows, start_job
from .processes import Session
from .proxy import FaultProxy, Faults
from .servers import OWNER, ObjectStore

SOURCE = "s3://photos/all"
CALM = Faults(latency_seconds=0.8)
"""The store on a good day. Latency makes a job last long enough to be hit."""
SMALLEST_OBJECT_STORE = 80 * 10**6
"""Bytes; Ray refuses less than 75 MB."""
DISKS = {"output": 48, "ray": 512, "cache": 64}
"""Megabytes of the small disks."""


@dataclass(frozen=True)
class World:
    """What all episodes share."""

    store: ObjectStore
    proxy: FaultProxy
    model: Path
    folder: Path
    flags: tuple[str, ...]
    """Of every job."""
    chance: random.Random


class Episode:
    """One machine, from a bucket to a bucket. A context manager that ends all that it started.

    Args:
        number: among all episodes, for names of outputs and logs.
    """

    name = "machine"

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.title = f"{self.name}-{number}"
        self.place = Place.make(world.folder / self.title)
        self.sessions: list[Session] = []
        self.others: list[Session] = []
        """Jobs that were started beside the one under test."""
        self._timers: list[threading.Timer] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Episode:
        self.world.proxy.faults = CALM
        self.world.proxy.requests.clear()
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.place.ray_folder, ignore_errors=True)
            self._prepare(stack)
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def job(self) -> Session:
        """The job under test."""
        return self.sessions[-1]

    @functools.cached_property
    def output(self) -> Rows:
        return Output(self.world.store.client(), "captions", self.title)

    def start(self) -> Session:
        """Start the job, for the first time or again."""
        self._start_machines()
        self.sessions.append(self.start_one(self.title))
        return self.job

    def start_one(self, name: str) -> Session:
        """Start a job with this episode's command."""
        flags = (*self.world.flags, "--address", self._address())
        return start_job(self.place, self._env(), SOURCE, self.output.url, self.world.model, *flags, name=name)

    def find(self, pattern: str) -> list[int]:
        """Processes of the job and of its machines by their command lines."""
        return self.job.find(pattern)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something later, at the end of the episode at the latest."""
        timer = threading.Timer(seconds, action)
        self._timers.append(timer)
        timer.start()

    # --- what differs between kinds of episodes -------------------------------------------------------------------

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        """Make what lasts as long as the episode."""

    def _start_machines(self) -> None:
        """Make sure that the job can start."""

    def _address(self) -> str:
        return "local"

    def _env(self) -> dict[str, str]:
        return OWNER.env(self.world.proxy.url)

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self.world.proxy.faults = CALM
        for session in (*self.sessions, *self.others):
            session.end()


class ClusterEpisode(Episode):
    """Two nodes, from a bucket to a bucket."""

    name = "cluster"
    store_bytes = 200 * 10**6

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        self._new_cluster()
        stack.callback(lambda: self.cluster.stop())

    def _new_cluster(self) -> None:
        env = self.place.env(self._env())
        self.cluster = Cluster(env, self.place.folder, self.store_bytes)

    def _start_machines(self) -> None:
        head = self.cluster.nodes.get("head")
        if head is not None and not head.find(r"gcs/gcs_server "):
            self.cluster.stop()
            self._new_cluster()
        if "head" not in self.cluster.nodes:
            self.cluster.start("head", num_cpus=1)
        self.start_second()

    def start_second(self) -> None:
        """Start the second node, if it does not run."""
        second = self.cluster.nodes.get("second")
        if second is None or not second.find(r"raylet/raylet "):
            if second is not None:
                second.end()
            self.cluster.start("second", num_cpus=1)

    def find(self, pattern: str) -> list[int]:
        nodes = self.cluster.nodes.values()
        return [pid for session in (self.job, *nodes) for pid in session.find(pattern)]

    def _address(self) -> str:
        return self.cluster.address


class SmallStoreEpisode(ClusterEpisode):
    """Two nodes with the smallest object stores that Ray allows, most of them taken by somebody else's object."""

    name = "small-store"
    store_bytes = SMALLEST_OBJECT_STORE

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        super()._prepare(stack)
        self.fillers: list[Session] = []
        stack.callback(self._end_fillers)

    def _end_fillers(self) -> None:
        for filler in self.fillers:
            filler.end()

    def _start_machines(self) -> None:
        super()._start_machines()
        if not any(filler.is_running for filler in self.fillers):
            program = (
                f"import ray, numpy, time; ray.init(address='{self.cluster.address}', log_to_driver=False); "
                f"held = ray.put(numpy.ones({SMALLEST_OBJECT_STORE * 9 // 10}, numpy.uint8)); time.sleep(10**6)"
            )
            log, env = self.place.folder / "filler.log", self.place.env({})
            self.fillers.append(Session([sys.executable, "-c", program], env=env, log=log))


class DiskEpisode(Episode):
    """One machine, from a bucket to a small disk; Ray's folder and the engine's cache are on small disks, too."""

    name = "disk"

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        folder = self.world.folder / f"{self.title}-disks"
        self.disks = {"output": folder / "output", "ray": self.place.ray_folder, "cache": folder / "cache"}
        for name, at in self.disks.items():
            stack.enter_context(small_disk(at, DISKS[name]))

    @functools.cached_property
    def output(self) -> Rows:
        return LocalOutput(self.disks["output"] / "out")

    def _env(self) -> dict[str, str]:
        return {**super()._env(), "CAPTIONLIB_CACHE": str(self.disks["cache"])}


class ClockEpisode(Episode):
    """One machine, from a bucket to a bucket, with a clock that can jump (libfaketime)."""

    name = "clock"

    def _start_machines(self) -> None:
        # An empty file and not "+0": from the first number on, libfaketime ends every timed wait on a monotonic clock
        # at once (its pull request 503), and a worker of Ray that starts then may die.
        self._write_clock("")

    def set_clock(self, seconds: int) -> None:
        """Have all processes of the job see another time of day; monotonic clocks stay as they are."""
        self._write_clock(f"{seconds:+d}\n")

    def _write_clock(self, text: str) -> None:
        path = self._clock()
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)

    def _clock(self) -> Path:
        return self.place.folder / "clock"

    def _env(self) -> dict[str, str]:
        return {
            **super()._env(),
            "LD_PRELOAD": str(_libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock()),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


EPISODES: dict[str, type[Episode]] = {
    kind.name: kind for kind in (Episode, ClusterEpisode, SmallStoreEpisode, DiskEpisode, ClockEpisode)
}


def _libfaketime() -> Path:
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        sys.exit("clock jumps need libfaketime: pip install 'captionlib[test]', or name other kinds with --kinds")
    return Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of this size in a folder, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        sys.exit(f"small disks cannot be mounted, which takes root ({mounted.stderr.strip()}): name other --kinds")
    try:
        yield
    finally:
        # Lazily, since a process that is about to end may still have a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all space of a folder's disk with one file."""
    path = folder / ".filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(2**20)):
            pass
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(2**9)):
            pass
    return path


def difference(rows: list[dict[str, Any]], truth: list[dict[str, Any]], same: Callable[[Any], Any]) -> tuple[int, ...]:
    """(rows lost, rows twice, rows that differ), compared by what `same` leaves of a row; prints one that differs."""
    found: dict[int, dict[str, Any]] = {row["image_id"]: row for row in rows}
    expected = {row["image_id"]: row for row in truth}
    differ = [i for i, row in found.items() if i not in expected or same(row) != same(expected[i])]
    if differ:
        print(f"instead of {expected.get(differ[0])}: {found[differ[0]]}")
    return len(expected.keys() - found.keys()), len(rows) - len(found), len(differ)
