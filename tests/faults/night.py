"""A night of faults: the caption job, hit by anything at random moments, until nothing of the plan is left.

    python -m tests.faults.night --faults 100 --seed 0

Each episode starts the job with a fresh output, lets faults of the plan happen at random moments, and starts the job
again whenever it ended with something left. When a run ends well, the rows are compared with those of an undisturbed
run. A table is printed at the end; the exit code is 1 if a row was lost, doubled or wrong, or if a run did not end as
it should. Small disks (`--kinds disk-full-output` and others) take root.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .chances import evenly, until_a_random_moment
from .harness import Output, Place, rounded, run_job
from .inputs import make_checkpoint, upload_photos
from .night_episodes import EPISODES, Episode, World, difference
from .night_faults import FAULTS, Fault
from .proxy import fault_proxy
from .servers import OWNER, ObjectStore, object_store

PATIENCE = 600
"""Seconds without a fault after which a run counts as hung."""
MOST_FAULTS = 8
"""In one episode."""
MOST_RUNS = 20
MOST_MISSES = 15
"""Moments at which a fault could not happen, after which it is left out."""
PROG = "python -m jobs.caption: "


@dataclass
class Made:
    """A fault that was made."""

    kind: str
    read_again: int = 0
    """Photos read a second time between this fault and the next."""
    ended: bool = False
    """Whether it ended the run."""


@dataclass
class Tally:
    """What became of one kind of episode."""

    episodes: int = 0
    runs: int = 0
    lost: int = 0
    twice: int = 0
    differ: int = 0
    seconds: float = 0.0


@dataclass
class Night:
    """The plan, and what became of it.

    Args:
        until: when no further fault is started, by time.monotonic().
    """

    world: World
    truth: list[dict[str, Any]]
    plan: list[Fault]
    until: float
    made: list[Made] = field(default_factory=list)
    tallies: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    failures: list[str] = field(default_factory=list)
    misses: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def run(self) -> None:
        """Episode after episode, until the plan is empty or the time is up."""
        while self._is_time():
            name = self.world.chance.choice(self.plan[0].episodes)
            number = sum(tally.episodes for tally in self.tallies.values()) + 1
            tally, began = self.tallies[name], time.monotonic()
            tally.episodes += 1
            try:
                with EPISODES[name](self.world, number) as episode:
                    _Episode(self, episode, tally).play()
            except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
                self.fail(f"episode {number} ({name}): {error}")
            tally.seconds += time.monotonic() - began

    def _is_time(self) -> bool:
        return bool(self.plan) and time.monotonic() < self.until

    def next_for(self, episode: Episode) -> Fault | None:
        """The next fault of the plan that can happen in this episode."""
        return next((fault for fault in self.plan if episode.name in fault.episodes), None) if self._is_time() else None

    def miss(self, fault: Fault) -> None:
        """A fault could not happen; it stays in the plan unless that was so too often."""
        self.misses[fault.kind] += 1
        if self.misses[fault.kind] >= MOST_MISSES:
            self.misses[fault.kind] = 0
            self.plan.remove(fault)
            self.fail(f"{fault.kind} could not happen at {MOST_MISSES} moments: set --photos higher")

    def fail(self, why: str) -> None:
        """Note what must not happen."""
        print(f"FAILURE: {why}", flush=True)
        self.failures.append(why)

    def print_table(self) -> None:
        """What happened, for a person to read."""
        print(f"\n{'kind':<20}{'faults':>8}{'runs ended':>12}{'read again: mean':>18}{'max':>7}")
        for kind in FAULTS:
            made = [m for m in self.made if m.kind == kind]
            if made:
                again = [m.read_again for m in made]
                ended = sum(m.ended for m in made)
                print(f"{kind:<20}{len(made):>8}{ended:>12}{sum(again) / len(again):>18.1f}{max(again):>7}")
        print(f"\n{'episodes':<14}{'number':>8}{'runs':>7}{'rows lost':>11}{'twice':>7}{'differ':>8}{'minutes':>9}")
        for name, t in self.tallies.items():
            print(f"{name:<14}{t.episodes:>8}{t.runs:>7}{t.lost:>11}{t.twice:>7}{t.differ:>8}{t.seconds / 60:>9.1f}")


class _Episode:
    """One episode of a night."""

    def __init__(self, night: Night, episode: Episode, tally: Tally) -> None:
        self.night, self.episode, self.tally = night, episode, tally
        self.made: list[Made] = []
        self.runs = 0

    def play(self) -> None:
        """Run the job until it is done, with faults; then compare its rows."""
        while not self._run():
            if self.runs >= MOST_RUNS:
                raise AssertionError(f"not done after {self.runs} runs: {self._said(0)}")
        rows = self.episode.output.rows()
        lost, twice, differ = difference(rows, self.night.truth, rounded)
        self.tally.lost += lost
        self.tally.twice += twice
        self.tally.differ += differ
        self._settle()
        print(f"{self._head()}: done, {lost} rows lost, {twice} twice, {differ} differ", flush=True)

    def _run(self) -> bool:
        """One run of the job with its faults; whether nothing is left to do."""
        episode = self.episode
        job = episode.start()
        self.runs += 1
        self.tally.runs += 1
        begins = job.log.stat().st_size if self.runs > 1 else 0
        began = time.monotonic()
        while job.is_running and len(self.made) < MOST_FAULTS:
            fault = self.night.next_for(episode)
            if fault is None or not until_a_random_moment(job, episode.output, episode.world.chance, PATIENCE):
                break
            rows, seconds = episode.output.num_rows(), time.monotonic() - began
            self._settle()  # what was read again until now is not this fault's
            if not fault.make(episode):
                self.night.miss(fault)
                continue
            self.night.plan.remove(fault)
            self.made.append(Made(fault.kind))
            self.night.made.append(self.made[-1])
            what = f"{self._head()}, {seconds:5.1f} s, {rows:,} rows: {fault.kind}"
            if fault.exit_code is not None:
                code = self._wait(120, begins)
                print(f"{what}; exit code {code}", flush=True)
                self.made[-1].ended = True
                if code not in (fault.exit_code, 0):  # 0: it was about to end
                    self.night.fail(f"exit code {code} after {fault.kind}: {self._said(begins)}")
                return code == 0 and self._others_are_done()
            print(what, flush=True)
        code = self._wait(PATIENCE, begins)
        self._settle()
        if code:
            self._check_sentence(code, self._said(begins), self._head())
            if self.made:
                self.made[-1].ended = True
        return code == 0 and self._others_are_done()

    def _wait(self, seconds: float, begins: int) -> int:
        try:
            return self.episode.job.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the run hangs {seconds:.0f} s after {self.made[-1].kind if self.made else 'its start'}: "
                f"{self.episode.job.titles()}\n{self._said(begins)}"
            ) from None

    def _others_are_done(self) -> bool:
        """Whether each job beside the one under test ended well; if not, the command is due once more."""
        codes = []
        while self.episode.others:
            other = self.episode.others.pop()
            codes.append(other.wait(PATIENCE))
            other.end()
            print(f"{self._head()}: the second job ends with exit code {codes[-1]}", flush=True)
            if codes[-1]:
                self._check_sentence(codes[-1], other.log.read_text(errors="replace"), "the second job")
        return not any(codes)

    def _check_sentence(self, code: int, said: str, who: str) -> None:
        """A run that was not killed ends with a sentence."""
        last = said.strip().splitlines()[-1:] or [""]
        print(f"{who}: exit code {code}: {last[0]}", flush=True)
        # Behind "(raylet)", a traceback is one that Ray forwards from a worker, such as one whose disk is full.
        if code < 0 or re.search("^Traceback", said, re.MULTILINE) or not last[0].startswith(PROG):
            self.night.fail(f"{who}: exit code {code} without a sentence: {said[-6000:]}")

    def _said(self, begins: int) -> str:
        return self.episode.job.log.read_bytes()[begins:].decode(errors="replace")[-6000:]

    def _settle(self) -> None:
        """Charge what was read again so far to the last fault."""
        if self.made:
            again = self.episode.world.proxy.reads("/photos/all/")[1]
            self.made[-1].read_again = again - sum(made.read_again for made in self.made[:-1])

    def _head(self) -> str:
        return f"{time.strftime('%H:%M:%S')} {self.episode.title}, run {self.runs}"


def undisturbed(store: ObjectStore, model: Path, folder: Path, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a run of which nothing is in the way."""
    output = Output(store.client(), "captions", "undisturbed")
    place = Place.make(folder)
    code, log = run_job(place, OWNER.env(store.url), "s3://photos/all", output.url, model, *flags)
    shutil.rmtree(place.ray_folder, ignore_errors=True)
    if code:
        sys.exit(f"the undisturbed run fails: {log}")
    return output.rows()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a night; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.night", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=int, default=700)
    parser.add_argument("--kinds", default=",".join(FAULTS), help="only these, with commas between (default: all)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further fault after these")
    arguments = parser.parse_args(argv)
    kinds = arguments.kinds.split(",")
    if unknown := sorted(set(kinds) - set(FAULTS)):
        parser.error(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    # Where a shell started us in the background, it has SIGINT ignored, and so would each job that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # of clients of the proxy that were killed
    chance, began = random.Random(arguments.seed), time.monotonic()
    plan = [FAULTS[kind] for kind in evenly(chance, chance.sample(kinds, len(kinds)), arguments.faults)]
    flags = ("--no-report", "--images-per-chunk", "25")
    with tempfile.TemporaryDirectory(prefix="night-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with object_store(folder / "store") as store, fault_proxy(store.address, arguments.seed) as proxy:
            model = make_checkpoint(folder / "model")
            upload_photos(store.client(), "photos", "all", arguments.photos)
            truth = undisturbed(store, model, folder / "undisturbed", flags)
            print(f"{len(truth):,} rows in the undisturbed run, after {time.monotonic() - began:.0f} s", flush=True)
            world = World(store, proxy, model, folder, flags, chance)
            night = Night(world, truth, plan, began + 60 * arguments.minutes)
            try:
                night.run()
            except KeyboardInterrupt:
                night.fail("interrupted")
            finally:
                night.print_table()
    minutes = (time.monotonic() - began) / 60
    print(f"{len(night.made)} of {arguments.faults} faults, seed {arguments.seed}, {minutes:.1f} minutes")
    for why in night.failures:
        print(f"FAILURE: {why}")
    wrong = sum(tally.lost + tally.twice + tally.differ for tally in night.tallies.values())
    return 1 if wrong or night.failures else 0


if __name__ == "__main__":
    sys.exit(main())
