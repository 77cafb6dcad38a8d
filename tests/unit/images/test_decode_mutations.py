"""Decoding of damaged files: each ends as a picture or as an error of a known kind, whatever was done to it.

pytest -m slow -s tests/unit/test_image_mutations.py     # 20,000 files, with counts by kind
"""

from __future__ import annotations

import faulthandler
import time
import typing
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captionlib.images.decode import ErrorKind, ImageDecodeError, decode_image
from tests.mutations import mutate, originals

KINDS = set(typing.get_args(ErrorKind))
SECONDS_UNTIL_IT_HANGS = 60


def outcome(data: bytes, target_side: int | None) -> str:
    """`picture`, or the kind of the error. Anything else fails: another exception, a warning, a hang."""
    faulthandler.dump_traceback_later(SECONDS_UNTIL_IT_HANGS, exit=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            decoded = decode_image(data, target_side=target_side)
    except ImageDecodeError as error:
        kind, _, message = str(error).partition(": ")
        return kind if kind == error.kind and message else f"malformed {error}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert decoded.image.mode == "RGB"
    assert decoded.image.size == (decoded.width, decoded.height) or target_side is not None
    return "picture"


def run(num_files: int, seed: int) -> Counter[tuple[str, str]]:
    files = originals()
    generator = np.random.default_rng(seed)
    counts: Counter[tuple[str, str]] = Counter()
    slowest_seconds, slowest = 0.0, ""
    for index in range(num_files):
        format_name, data = files[index % len(files)]
        mutated = mutate(data, files[generator.integers(0, len(files))][1], generator)
        started = time.perf_counter()
        result = outcome(mutated, target_side=[None, 16][index % 2])
        seconds = time.perf_counter() - started
        if seconds > slowest_seconds:
            slowest_seconds, slowest = seconds, f"file {index}, {format_name}, {result}"
        counts[format_name, result] += 1
    print(f"\nslowest: {slowest_seconds:.3f} s, {slowest}")
    for (format_name, result), count in sorted(counts.items()):
        print(f"{format_name:5} {result:17} {count}")
    return counts


def check(counts: Counter[tuple[str, str]], num_files: int) -> None:
    assert counts.total() == num_files
    by_result: Counter[str] = Counter()
    for (_, result), count in counts.items():
        by_result[result] += count
    assert set(by_result) <= KINDS | {"picture"}
    # The damage is neither so light nor so heavy that a part of the decoder goes untested.
    assert by_result["picture"] > 0.05 * num_files
    assert by_result["TruncatedImage"] > 0.05 * num_files
    assert by_result["CorruptImage"] > 0.05 * num_files


def test_originals_decode() -> None:
    assert {outcome(data, None) for _, data in originals()} == {"picture"}


def test_mutated_files() -> None:
    check(run(500, seed=1), 500)


@pytest.mark.slow
def test_many_mutated_files() -> None:
    check(run(20_000, seed=2), 20_000)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF\xff\0\0\0WEBPVP8 "]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_end_as_a_picture_or_a_known_error(signature: bytes, rest: bytes) -> None:
    assert outcome(signature + rest, None) in KINDS | {"picture"}
