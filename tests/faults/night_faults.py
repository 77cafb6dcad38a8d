"""The faults of a night: what goes wrong, and in which kinds of episodes it can."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from .chances import DECODING_TASK, DRIVER_KILLS, GCS, MODEL_ACTOR, RAYLET, kill_driver
from .night_episodes import CALM, ClockEpisode, ClusterEpisode, DiskEpisode, Episode, fill
from .processes import kill, wait_until
from .proxy import Faults

LOCAL = ("machine", "disk")
ANY = (*LOCAL, "cluster", "clock")
BUCKET = ("machine", "cluster")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    kind: str
    episodes: tuple[str, ...]
    """Kinds of episodes in which it makes sense."""
    make: Callable[[Episode], bool]
    """Make it happen, and return when it is over; False if it cannot happen at this moment."""
    exit_code: int | None = None
    """That the job must end with at once; None if it should go on, or end with a sentence."""


# --- processes that die ------------------------------------------------------------------------------------------


def _driver(how: str) -> Callable[[Episode], bool]:
    return lambda episode: kill_driver(episode.job, how)


def _one_of(pattern: str) -> Callable[[Episode], bool]:
    """Kill a process of the job or its machines, chosen by chance."""

    def make(episode: Episode) -> bool:
        found = episode.find(pattern)
        return bool(found) and kill(episode.world.chance.choice(found))

    return make


def _power_cut(episode: Episode) -> bool:
    """All processes of the machine at once; not one after the other, so that none sees another die."""
    found = episode.job.titles()
    for pid in found:
        kill(pid, signal.SIGSTOP)
    for pid in found | episode.job.titles():
        kill(pid)
    return True


def _of_second_node(pattern: str) -> Callable[[Episode], bool]:
    """Kill processes of the second node; a node that is lost so is replaced after some seconds."""

    def make(episode: Episode) -> bool:
        episode = cast(ClusterEpisode, episode)
        if sum(kill(pid) for pid in episode.cluster.nodes["second"].find(pattern)) == 0:
            return False
        _last(episode, 8)
        episode.start_second()
        return True

    return make


def _head_gcs(episode: Episode) -> bool:
    found = cast(ClusterEpisode, episode).cluster.nodes["head"].find(GCS)
    return bool(found) and kill(found[0])


def _second_driver(episode: Episode) -> bool:
    """The same command once more: a local output refuses it, a bucket takes both."""
    name = f"{episode.title}-second-{len(episode.others)}"
    other = episode.start_one(name)
    episode.others.append(other)
    if episode.name == "disk":
        code = other.wait(300)
        said = other.log.read_text()
        episode.others.remove(other)
        other.end()
        # The first may have ended meanwhile: then the second found the output free.
        assert (code == 2 and "another run is writing to" in said) or not episode.job.is_running, (code, said[-2000:])
    return True


# --- the store -----------------------------------------------------------------------------------------------------


def _store_killed(episode: Episode) -> bool:
    episode.world.store.kill()
    try:
        time.sleep(episode.world.chance.uniform(5, 15))
    finally:
        episode.world.store.start()
    return True


def _for(seconds: float, faults: Faults) -> Callable[[Episode], bool]:
    """The network has faults for some seconds."""

    def make(episode: Episode) -> bool:
        proxy = episode.world.proxy
        proxy.faults = replace(faults, stale_seconds=proxy.faults.stale_seconds)
        _last(episode, seconds)
        proxy.faults = replace(CALM, stale_seconds=proxy.faults.stale_seconds)
        return True

    return make


def _stale_listings(episode: Episode) -> bool:
    """For longer than a run needs to start again, so that the listings of its start meet it, too."""
    proxy = episode.world.proxy

    def end() -> None:
        proxy.faults = replace(proxy.faults, stale_seconds=0)

    proxy.faults = replace(proxy.faults, stale_seconds=20)
    episode.after(90, end)
    return True


def _object_store(episode: Episode) -> bool:
    """The episode itself is the fault."""
    return True


# --- disks and clocks ------------------------------------------------------------------------------------------------


def _disk_full(name: str) -> Callable[[Episode], bool]:
    def make(episode: Episode) -> bool:
        disk = cast(DiskEpisode, episode).disks[name]
        if name == "cache":  # else what is in it already would do for the model
            actors = episode.find(MODEL_ACTOR)
            if not actors:
                return False
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        filler = fill(disk)
        try:
            if name == "cache":
                kill(actors[0])
            _last(episode, 20 if name == "cache" else 10)
        finally:
            with contextlib.suppress(FileNotFoundError):
                filler.unlink()
        return True

    return make


def _clock_jump(episode: Episode) -> bool:
    """An hour ahead or back, and after some seconds back to the truth."""
    clock = cast(ClockEpisode, episode)
    clock.set_clock(episode.world.chance.choice((-3600, 3600)))
    _last(episode, 15)
    clock.set_clock(0)
    return True


def _last(episode: Episode, seconds: float) -> None:
    """Wait some seconds, or until the job has ended."""
    wait_until(lambda: not episode.job.is_running, seconds)


_LYING = Faults(
    slow_down=0.15, too_many=0.1, reset=0.1, cut=0.1, lost_answer=0.05, latency_seconds=CALM.latency_seconds
)
_SLOW = Faults(latency_seconds=2, stall=0.1, stall_seconds=10)

FAULTS: dict[str, Fault] = {
    fault.kind: fault
    for fault in (
        *(Fault(how.replace(" ", "-").lower(), ANY, _driver(how), code) for how, code in DRIVER_KILLS.items()),
        Fault("power-cut", LOCAL, _power_cut, -signal.SIGKILL),
        Fault("model-actor", (*LOCAL, "cluster"), _one_of(MODEL_ACTOR)),
        Fault("decoding-task", (*LOCAL, "cluster"), _one_of(DECODING_TASK)),
        Fault("raylet", LOCAL, _one_of(RAYLET)),
        Fault("gcs", LOCAL, _one_of(GCS)),
        Fault("second-node", ("cluster",), _of_second_node(".")),
        Fault("second-raylet", ("cluster",), _of_second_node(RAYLET)),
        Fault("second-actor", ("cluster",), _of_second_node(MODEL_ACTOR)),
        Fault("head-gcs", ("cluster",), _head_gcs),
        Fault("store-killed", (*BUCKET, "disk"), _store_killed),
        Fault("store-slow", (*BUCKET, "disk"), _for(30, _SLOW)),
        Fault("store-lying", (*BUCKET, "disk"), _for(15, _LYING)),
        Fault("error-body", (*BUCKET, "disk"), _for(15, replace(CALM, error_body=0.2))),
        Fault("stale-listings", BUCKET, _stale_listings),
        Fault("object-store", ("small-store",), _object_store),
        Fault("disk-full-output", ("disk",), _disk_full("output")),
        Fault("disk-full-ray", ("disk",), _disk_full("ray")),
        Fault("disk-full-cache", ("disk",), _disk_full("cache")),
        Fault("clock-jump", ("clock",), _clock_jump),
        Fault("second-driver", LOCAL, _second_driver),
    )
}
