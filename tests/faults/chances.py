"""When and what to kill: random moments of a running job, and the processes that it consists of."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence

from .harness import PATIENCE, Rows
from .processes import Session, kill, wait_until

DRIVER_KILLS = {"driver SIGKILL": -signal.SIGKILL, "driver SIGINT": 130, "driver SIGTERM": 143}
"""How the driver is ended → the exit code that it must have."""
MODEL_ACTOR, DECODING_TASK = r"^ray::.*ModelStage", r"^ray::.*DecodeStage"
RAYLET, GCS = r"^\S*raylet/raylet ", r"^\S*gcs/gcs_server "
"""Command lines of processes, for `Session.find`."""


def evenly(chance: random.Random, kinds: Sequence[str], count: int) -> list[str]:
    """Each kind about equally often, in any order."""
    plan = [kinds[i % len(kinds)] for i in range(count)]
    chance.shuffle(plan)
    return plan


def until_a_random_moment(job: Session, output: Rows, chance: random.Random, patience: float = PATIENCE) -> bool:
    """Wait some seconds, or for some chunks of the output and then some seconds; False when the job ended meanwhile."""
    more_chunks = chance.choice((0, 1, 1))
    seconds = chance.uniform(0, 20 if not more_chunks else 2)
    chunks = len(output.chunks())
    wait_until(lambda: not job.is_running or len(output.chunks()) >= chunks + more_chunks, patience, pause=0.2)
    return not wait_until(lambda: not job.is_running, seconds)


def kill_driver(job: Session, how: str) -> bool:
    """End the driver in one of the ways of `DRIVER_KILLS`; whether it was there."""
    if how == "driver SIGINT":
        job.interrupt()
        return True
    return kill(job.pid, signal.SIGTERM if how == "driver SIGTERM" else signal.SIGKILL)
