"""The measurement of hostile images: it sees what it is made to see."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from captionlib.images.decode import MAX_PIXELS, ImageDecodeError
from captionlib.images.decode_pixels import DecodedPixels
from tests.benchmarks import hostile_images
from tests.benchmarks.hostile_images import Outcome, Tally, complaint, decode, mutation, outcomes, table
from tests.mutations import originals


def deadly_work(small: object, large: object, seed: int, indices: list[int], answers: Connection) -> None:
    """Dies at file 2, hangs at file 4."""
    answers.send(None)
    for index in indices:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 4:
            time.sleep(600)
        answers.send(Outcome(index, "decoded"))


def test_a_crash_and_a_hang_are_seen_and_the_other_files_decoded(monkeypatch):
    monkeypatch.setattr(hostile_images, "SECONDS_UNTIL_KILLED", 10)
    results = [outcome.result for outcome in outcomes([], [], 0, range(6), deadly_work)]
    assert results == ["decoded"] * 2 + ["crash: exit code -9", "decoded", "hang: no answer for 10 s", "decoded"]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(0, "decoded", 1.0, 10.0), None),
        (Outcome(0, "CorruptImage", 1.0, 10.0), None),
        (Outcome(0, "unknown error KeyError: 1"), "unknown error KeyError: 1"),
        (Outcome(0, "crash: exit code -11"), "crash: exit code -11"),
        (Outcome(0, "decoded", 2.5, 10.0), "2.5 s, 2 s is the limit (decoded)"),
        (Outcome(0, "CorruptImage", 1.0, 101.0), "101 MiB, 100 MiB is the limit (CorruptImage)"),
    ],
)
def test_complaints(outcome, expected):
    assert complaint(outcome, 2.0, 100.0) == expected


class Faulty:
    """A transform that does what it is told."""

    side = None
    largest_bytes = 12

    def __init__(self, result: object) -> None:
        self.result = result

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        if isinstance(self.result, BaseException):
            raise self.result
        return DecodedPixels(self.result, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (np.zeros((2, 2, 3), np.uint8), "decoded"),
        (np.zeros((2, 3, 3), np.uint8), "unknown pixels uint8 (2, 3, 3)"),
        (np.zeros((1, 1, 3), np.float32), "unknown pixels float32 (1, 1, 3)"),
        (ImageDecodeError("CorruptImage", "bad"), "CorruptImage"),
        (ImageDecodeError("CorruptImage", ""), "unknown error CorruptImage: "),
        (ImageDecodeError("Surprise", "bad"), "unknown error Surprise: bad"),  # type: ignore[arg-type]
        (KeyError(1), "unknown error KeyError: 1"),
        (KeyboardInterrupt(), "unknown error KeyboardInterrupt: "),
    ],
)
def test_results(result, expected):
    assert decode(b"", Faulty(result)) == expected


def test_the_table():
    tallies = {
        "PNG": Tally(Counter({"decoded": 3, "CorruptImage": 2, "crash: exit code -11": 1}), (1.5, 3), (20.0, 4), 1, 0),
        "GIF": Tally(Counter({"decoded": 4, "unknown error KeyError": 1}), (0.25, 3), (7.0, 4)),
    }
    assert [line.split() for line in table(tallies).splitlines()] == [
        ["format", "mutations", "decoded", "CorruptImage", "other", "worst", "s", "worst", "MiB", "crashes", "hangs"],
        ["GIF", "5", "4", "0", "1", "0.25", "7", "0", "0"],
        ["PNG", "6", "3", "2", "0", "1.50", "20", "1", "0"],
    ]


def test_number_and_seed_determine_a_file():
    files = originals()
    some = [mutation(index, 1, files, []) for index in range(60)]
    assert [mutation(index, 1, files, []) for index in range(60)] == some
    assert [mutation(index, 2, files, []) for index in range(60)] != some
    assert {name for name, _ in some} == {name for name, _ in files}


@pytest.mark.parametrize(("limit", "code"), [("20", 0), ("0", 1)])
def test_the_command(tmp_path, monkeypatch, capsys, limit, code):
    monkeypatch.setattr(hostile_images, "large_originals", list)
    monkeypatch.setattr(
        sys, "argv", ["hostile_images.py", "--mutations=60", f"--max-seconds={limit}", f"--culprits={tmp_path}"]
    )
    assert hostile_images.main() == code
    said = capsys.readouterr().out
    last_row = said.splitlines()[-3].split()
    assert last_row[:2] == ["all", "60"]
    stored = list(Path(tmp_path).iterdir())
    if code:
        assert len(stored) == 60
        assert all(str(file) in said for file in stored)
        assert "60 files outside the limits" in said
    else:
        assert not stored
        assert "every file within the limits" in said
