"""Decodes damaged and malicious image files as a job does, in a process that is watched: time, memory, crashes, hangs.

python tests/benchmarks/hostile_images.py --mutations 100000

Each file is a mutation of a small file of one of the formats that are read, or of a large one that compresses to
little; number and seed determine it. It must end as pixels or as an `ImageDecodeError` of a known kind, within
--max-seconds of CPU time and --max-mib of memory. Files that do not are stored in --culprits, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
import typing
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from captionlib.config import Preprocessing
from captionlib.images.decode import ErrorKind, ImageDecodeError
from captionlib.images.transforms import EncoderSquare, ImageTransform, MaxSide, ResizeAndCrop
from tests.mutations import large_originals, mutate, mutate_structure, originals

File = tuple[str, bytes]
KINDS = set(typing.get_args(ErrorKind))
SHARE_OF_LARGE = 0.003
SHARE_OF_STRUCTURE = 0.8
SECONDS_UNTIL_KILLED = 120
"""Wall-clock time after which the process hangs."""
# Sides smaller than the small files, which are reduced while they are decoded, and larger ones.
TRANSFORMS: tuple[ImageTransform, ...] = (
    EncoderSquare(Preprocessing(size=224)),
    EncoderSquare(Preprocessing(size=24)),
    EncoderSquare(Preprocessing(size=24, square="center_crop")),
    EncoderSquare(Preprocessing(size=64, square="pad")),
    MaxSide(48),
    MaxSide(1024),
    ResizeAndCrop(side=48, height=None, width=56, interpolation="bicubic"),
    ResizeAndCrop(side=48, height=48, width=48, interpolation="bilinear"),
)


@dataclass
class Outcome:
    """What became of one file."""

    index: int
    result: str
    """`decoded`, the kind of an error, or what is wrong."""
    seconds: float = 0.0
    """CPU time of the process."""
    mib: float = 0.0
    """How far its memory grew, at most."""


@dataclass
class Tally:
    """A row of the table."""

    results: Counter[str] = field(default_factory=Counter)
    seconds: tuple[float, int] = (0.0, -1)
    mib: tuple[float, int] = (0.0, -1)
    crashes: int = 0
    hangs: int = 0


def mutation(index: int, seed: int, small: Sequence[File], large: Sequence[File]) -> File:
    """File number `index`: (format of its original, bytes)."""
    generator = random.Random(f"{seed} {index}")
    if large and generator.random() < SHARE_OF_LARGE:
        format_name, data = generator.choice(large)
    else:
        format_name, data = small[index % len(small)]
    same_format = [other for name, other in small if name == format_name]
    other = generator.choice(same_format if generator.random() < 0.6 else [other for _, other in small])
    if generator.random() < SHARE_OF_STRUCTURE:
        return format_name, mutate_structure(data, other, generator)
    return format_name, mutate(data, other, np.random.default_rng([seed, index]))


def decode(data: bytes, transform: ImageTransform) -> str:
    """Decode a file as a job does; returns the result as in `Outcome`."""
    try:
        pixels = transform(data).pixels
    except ImageDecodeError as error:
        is_well_formed = error.kind in KINDS and str(error).startswith(f"{error.kind}: ") and error.message
        return error.kind if is_well_formed else f"unknown error {error}"
    except BaseException as error:
        return f"unknown error {type(error).__name__}: {error}"[:300]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.nbytes > transform.largest_bytes:
        return f"unknown pixels {pixels.dtype} {pixels.shape}"
    return "decoded"


def memory(name: str) -> int:
    """A figure of /proc/self/status in KiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def work(small: list[File], large: list[File], seed: int, indices: Sequence[int], answers: Connection) -> None:
    """Body of the process: send None when it is ready; then decode files and send an outcome for each."""
    os.nice(max(0, 19 - os.nice(0)))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries describe each fault there
    warnings.simplefilter("error")
    for transform in TRANSFORMS:  # loads what is loaded on first use
        assert decode(small[0][1], transform) == "decoded"
    answers.send(None)
    for index in indices:
        _, data = mutation(index, seed, small, large)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets VmHWM, the peak, to the present size
        before, started = memory("VmRSS"), time.process_time()
        result = decode(data, TRANSFORMS[index % len(TRANSFORMS)])
        seconds = time.process_time() - started
        answers.send(Outcome(index, result, seconds, (memory("VmHWM") - before) / 1024))


def outcomes(
    small: list[File], large: list[File], seed: int, indices: Sequence[int], body: Callable[..., None] = work
) -> Iterator[Outcome]:
    """Decode all files in a process, which is replaced when it dies or hangs.

    Args:
        body: runs in the process.
    """
    left = list(indices)
    while left:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=body, args=(small, large, seed, left, theirs), daemon=True
        )
        process.start()
        theirs.close()
        done, reason = 0, ""
        assert ours.recv() is None  # its start does not count
        while done < len(left):
            try:
                if not ours.poll(SECONDS_UNTIL_KILLED):
                    reason = f"hang: no answer for {SECONDS_UNTIL_KILLED} s"
                    break
                outcome = ours.recv()
            except (EOFError, ConnectionResetError):
                process.join()
                reason = f"crash: exit code {process.exitcode}"
                break
            yield outcome
            done += 1
        process.kill()
        process.join()
        ours.close()
        if reason:
            yield Outcome(left[done], reason)
            done += 1
        left = left[done:]


def complaint(outcome: Outcome, max_seconds: float, max_mib: float) -> str | None:
    """What is wrong with an outcome; None if nothing is."""
    if outcome.result != "decoded" and outcome.result not in KINDS:
        return outcome.result
    if outcome.seconds > max_seconds:
        return f"{outcome.seconds:.1f} s, {max_seconds:g} s is the limit ({outcome.result})"
    if outcome.mib > max_mib:
        return f"{outcome.mib:.0f} MiB, {max_mib:g} MiB is the limit ({outcome.result})"
    return None


def table(tallies: dict[str, Tally]) -> str:
    """One line per format."""
    kinds = [kind for kind in typing.get_args(ErrorKind) if any(tally.results[kind] for tally in tallies.values())]
    lines = [["format", "mutations", "decoded", *kinds, "other", "worst s", "worst MiB", "crashes", "hangs"]]
    for name, tally in sorted(tallies.items()):
        known = [tally.results[kind] for kind in ("decoded", *kinds)]
        other = tally.results.total() - sum(known) - tally.crashes - tally.hangs
        worst = f"{tally.seconds[0]:.2f}", f"{tally.mib[0]:.0f}", tally.crashes, tally.hangs
        lines.append([name, *map(str, (tally.results.total(), *known, other, *worst))])
    names, *figures = zip(*lines, strict=True)
    columns = [[cell.ljust(max(map(len, names))) for cell in names]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in figures]
    return "\n".join("  ".join(line) for line in zip(*columns, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=100_000, help="number of files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="CPU seconds that a file may take")
    parser.add_argument("--max-mib", type=float, default=1536.0, help="MiB by which memory may grow for a file")
    parser.add_argument("--culprits", type=Path, default=Path(tempfile.gettempdir()) / "hostile-images")
    arguments = parser.parse_args()
    small, large = originals(), large_originals()
    tallies: dict[str, Tally] = defaultdict(Tally)
    tallies["all"] = Tally()
    indices = range(arguments.first, arguments.first + arguments.mutations)
    started, num_bad = time.monotonic(), 0
    for outcome in outcomes(small, large, arguments.seed, indices):
        format_name, data = mutation(outcome.index, arguments.seed, small, large)
        for tally in (tallies[format_name], tallies["all"]):
            tally.results[outcome.result] += 1
            tally.seconds = max(tally.seconds, (outcome.seconds, outcome.index))
            tally.mib = max(tally.mib, (outcome.mib, outcome.index))
            tally.crashes += outcome.result.startswith("crash")
            tally.hangs += outcome.result.startswith("hang")
        if wrong := complaint(outcome, arguments.max_seconds, arguments.max_mib):
            num_bad += 1
            arguments.culprits.mkdir(parents=True, exist_ok=True)
            stored = arguments.culprits / f"{arguments.seed}-{outcome.index}.{format_name.lower()}"
            stored.write_bytes(data)
            transform = TRANSFORMS[outcome.index % len(TRANSFORMS)]
            print(f"file {outcome.index}, {format_name}, {transform}: {wrong}; stored as {stored}", flush=True)
        count = outcome.index + 1 - arguments.first
        if count % 5000 == 0:
            print(f"{count:,} files in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table({name: tally for name, tally in tallies.items() if tally.results}))
    slowest, largest = tallies["all"].seconds, tallies["all"].mib
    print(f"slowest: file {slowest[1]}; largest: file {largest[1]}; {time.monotonic() - started:.0f} s in all")
    print(f"{num_bad} files outside the limits" if num_bad else "every file within the limits")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
