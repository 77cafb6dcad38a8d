"""Whatever is killed, and whenever: started again, the job ends with every image once and as if nothing had been."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .chances import DECODING_TASK, DRIVER_KILLS, MODEL_ACTOR, evenly, kill_driver, until_a_random_moment
from .cluster import cluster
from .harness import NUM_KILLS, PATIENCE, SEED, Output, Place, assert_same_captions, start_job
from .processes import Session, kill, wait_until
from .proxy import FaultProxy, Faults, fault_proxy
from .servers import OWNER, ObjectStore

pytestmark = pytest.mark.slow

MOST_REDONE_PER_KILL = 2_000


@dataclass
class Kill:
    """One line of the log."""

    what: str
    seconds: float
    """Since the run began."""
    rows: int
    """With a caption or an error, at that moment."""
    fetched: int
    """Photos read from the store, at that moment, in all runs."""
    redone: int = 0
    """Photos read a second time between this kill and the next."""


@dataclass
class Log:
    """What happened, for a person to read."""

    proxy: FaultProxy
    output: Output
    kills: list[Kill] = field(default_factory=list)
    num_runs: int = 0

    def reads(self) -> tuple[int, int]:
        """(photos read, of them again)."""
        return self.proxy.reads("/photos/all/")

    def add(self, what: str, seconds: float) -> None:
        """Note a kill."""
        self.settle()
        self.kills.append(Kill(what, seconds, self.output.num_rows(), self.reads()[0]))

    def settle(self) -> None:
        """Charge what was read again so far to the last kill."""
        if self.kills:
            self.kills[-1].redone = self.reads()[1] - sum(kill.redone for kill in self.kills[:-1])

    def print(self) -> None:
        """The table."""
        print(f"\n{'kill':>4}  {'what':<24}{'after':>8}{'rows then':>11}{'read':>8}{'read again':>12}")
        for number, k in enumerate(self.kills, 1):
            print(f"{number:>4}  {k.what:<24}{k.seconds:>7.1f}s{k.rows:>11,}{k.fetched:>8,}{k.redone:>12,}")
        total, again = self.reads()
        print(f"{len(self.kills)} kills in {self.num_runs} runs; {total:,} photos read, {again:,} of them again")


@pytest.fixture
def proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    """In the way of all requests, to count them, and to slow them down: the work must outlast the kills."""
    with fault_proxy(store.address, SEED) as made:
        made.faults = Faults(latency_seconds=0.8)
        yield made


def test_one_machine(
    store: ObjectStore, proxy: FaultProxy, photos: str, undisturbed: list[dict[str, Any]], model: Path, place: Place
) -> None:
    output = Output(store.client(), "captions", "killed")
    log = Log(proxy, output)
    chance = random.Random(SEED)
    killed = [*DRIVER_KILLS, "driver SIGKILL", "model actor", "decoding task"]

    def start() -> Session:
        return start_job(place, OWNER.env(proxy.url), photos, output.url, model, "--no-report", name="killed")

    _kill_and_resume(start, log, chance, evenly(chance, killed, NUM_KILLS - NUM_KILLS // 3), {})
    assert_same_captions(output.rows(), undisturbed)


def test_two_nodes(
    store: ObjectStore, proxy: FaultProxy, photos: str, undisturbed: list[dict[str, Any]], model: Path, place: Place
) -> None:
    output = Output(store.client(), "captions", "killed-nodes")
    log = Log(proxy, output)
    chance = random.Random(SEED + 1)
    with cluster(place.env(OWNER.env(proxy.url)), place.folder) as made:
        made.start("head", num_cpus=1)

        def start() -> Session:
            if "second" not in made.nodes or not made.nodes["second"].is_running:
                made.start("second", num_cpus=1)
            return start_job(
                place, OWNER.env(proxy.url), photos, output.url, model,
                "--no-report", "--address", made.address, name="killed-nodes",
            )  # fmt: skip

        def kill_second(pattern: str) -> bool:
            if not made.nodes["second"].is_running:  # a machine that was lost is replaced, to be lost again
                made.start("second", num_cpus=1)
                return False
            found = made.nodes["second"].find(pattern)
            return sum(kill(pid) for pid in found) > 0

        extra = {
            "second node": lambda: kill_second("."),
            "second node's raylet": lambda: kill_second("raylet/raylet"),
            "actor of second node": lambda: kill_second(MODEL_ACTOR),
        }
        killed = ["driver SIGKILL", *extra]
        _kill_and_resume(start, log, chance, evenly(chance, killed, NUM_KILLS // 3), extra)
    assert_same_captions(output.rows(), undisturbed)


def _kill_and_resume(
    start: Callable[[], Session], log: Log, chance: random.Random, plan: list[str], extra: dict[str, Callable[[], bool]]
) -> None:
    """Run the job until it is done, with a kill for each entry of the plan; print what happened.

    A kill of the driver ends a run, and the next begins at once. Other kills should not be noticed.
    """
    sessions: list[Session] = []
    todo = list(plan)
    finished: dict[range, Any] = {}
    try:
        while True:
            finished.update(log.output.chunks())
            job = start()
            sessions.append(job)
            log.num_runs += 1
            began = time.monotonic()
            while todo and until_a_random_moment(job, log.output, chance):
                what = todo[0]
                finished.update(log.output.chunks())
                if not _kill_one(job, what, extra):
                    continue  # there is no such process at the moment
                log.add(what, time.monotonic() - began)
                todo.pop(0)
                if what in DRIVER_KILLS:
                    code = job.wait(120)
                    assert code == DRIVER_KILLS[what], f"{what}: exit code {code}"
                    break
            else:
                code = job.wait(PATIENCE)
                assert code == 0, job.log.read_text()[-4000:]
            rewritten = [ids for ids, at in log.output.chunks().items() if finished.get(ids, at) != at]
            assert not rewritten, f"rows that were finished were done again: {rewritten}"
            if code == 0:
                break
        leftover = {s.pid: s.titles() for s in sessions}
        assert wait_until(lambda: not any(s.titles() for s in sessions), 60), f"still there: {leftover}"
    finally:
        for session in sessions:
            session.end()
        log.settle()
        log.print()
    assert not todo, f"the job was done before these: {todo}; set FAULT_PHOTOS higher"
    assert len(log.kills) == len(plan)
    assert max(kill_.redone for kill_ in log.kills) <= MOST_REDONE_PER_KILL


def _kill_one(job: Session, what: str, extra: dict[str, Callable[[], bool]]) -> bool:
    if what in extra:
        return extra[what]()
    if what in DRIVER_KILLS:
        return kill_driver(job, what)
    found = job.find(MODEL_ACTOR if what == "model actor" else DECODING_TASK)
    return bool(found) and kill(found[0])
