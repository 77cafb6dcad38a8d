"""Decoding of damaged files: each ends as a picture or as an error of a known kind, whatever was done to it.

`tests/benchmarks/hostile_images.py` decodes many more of them, and measures time and memory.
"""

from __future__ import annotations

import faulthandler
import random
import typing
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captionlib.images.decode import ErrorKind, ImageDecodeError, decode_image
from captionlib.images.formats import FORMATS, find_format
from tests.mutations import mutate, mutate_structure, originals
from tests.mutations.parsers import parse
from tests.mutations.structure import MAX_BYTES

KINDS = set(typing.get_args(ErrorKind)) - {"DecodeTimeout"}
SECONDS_UNTIL_IT_HANGS = 60
FILES = originals()


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


def damage_bytes(count: int) -> list[bytes]:
    generator = np.random.default_rng(1)
    others = [FILES[generator.integers(0, len(FILES))][1] for _ in range(count)]
    return [mutate(FILES[i % len(FILES)][1], others[i], generator) for i in range(count)]


def damage_structure(count: int) -> list[bytes]:
    generator = random.Random(1)
    return [mutate_structure(FILES[i % len(FILES)][1], generator.choice(FILES)[1], generator) for i in range(count)]


def test_every_format_has_an_original_and_all_of_them_decode() -> None:
    found = [find_format(data) for _, data in FILES]
    assert {known.name for known in found if known is not None} == {known.name for known in FORMATS}
    assert {outcome(data, None) for _, data in FILES} == {"picture"}


@pytest.mark.parametrize("damage", [damage_bytes, damage_structure])
def test_mutated_files(damage: typing.Callable[[int], list[bytes]]) -> None:
    count = 500
    results = Counter(outcome(data, [None, 16][i % 2]) for i, data in enumerate(damage(count)))
    assert results.total() == count
    assert set(results) <= KINDS | {"picture"}
    # The damage is neither so light nor so heavy that a part of the decoder goes untested.
    for result in ("picture", "TruncatedImage", "CorruptImage"):
        assert results[result] > 0.05 * count, results


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF\xff\0\0\0WEBPVP8 "]
    ),
    st.binary(max_size=200),
)
def test_any_bytes_end_as_a_picture_or_a_known_error(signature: bytes, rest: bytes) -> None:
    assert outcome(signature + rest, None) in KINDS | {"picture"}


# ---- the mutations themselves ----


def test_parsers_lose_nothing_and_find_the_lengths() -> None:
    for format_name, data in FILES:
        file = parse(data)
        assert file.to_bytes(mend=False) == data, format_name
        assert file.to_bytes(mend=True) == data, format_name  # true lengths and checksums are those of the file
        if format_name != "JXL":  # a codestream without boxes is one part
            assert sum(len(parts) for parts in file.lists()) >= 2, format_name


def test_parsers_lose_nothing_of_damaged_files() -> None:
    for data in damage_bytes(500):
        assert parse(data).to_bytes(mend=False) == data


def test_mutations_are_many_and_reproducible() -> None:
    mutated = damage_structure(500)
    assert damage_structure(500) == mutated
    originals_too = {data for _, data in FILES}
    assert len(set(mutated) - originals_too) > 450
    assert max(map(len, mutated)) <= MAX_BYTES
