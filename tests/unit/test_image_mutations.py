"""Decoding of damaged files: each ends as a picture or as an error of a known kind, whatever was done to it.

pytest -m slow -s tests/unit/test_image_mutations.py     # 20,000 files, with counts by kind
"""

from __future__ import annotations

import faulthandler
import io
import struct
import time
import typing
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captionlib.images import ErrorKind, ImageDecodeError, decode_image

PHOTOS = Path(__file__).parents[1] / "photos"
KINDS = set(typing.get_args(ErrorKind))
SECONDS_UNTIL_IT_HANGS = 60


def originals() -> list[tuple[str, bytes]]:
    """Small files of every format in their variants: (format, file)."""
    photo = Image.open(PHOTOS / "astronaut.jpg").resize((72, 56))
    palette, rgba = photo.quantize(64), photo.convert("RGBA")
    rgba.putalpha(photo.convert("L"))
    grey_16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    variants: list[tuple[str, Image.Image, dict[str, typing.Any]]] = [
        ("JPEG", photo, {"exif": exif}),
        ("JPEG", photo, {"progressive": True}),
        ("JPEG", photo.convert("L"), {"restart_marker_blocks": 4}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("PNG", photo, {"exif": exif}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", rgba, {}),
        ("PNG", grey_16, {}),
        ("PNG", photo, frames),
        ("GIF", palette, {"transparency": 3}),
        ("GIF", photo, frames),
        ("WEBP", photo, {"exif": exif}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", photo, frames),
        ("TIFF", photo, {}),
        ("TIFF", rgba, {"compression": "tiff_lzw"}),
        ("TIFF", photo, {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("TIFF", photo, {"compression": "jpeg"}),
        ("TIFF", photo.convert("1"), {"compression": "group4"}),
        ("TIFF", grey_16, {}),
        ("BMP", photo, {}),
        ("BMP", palette, {}),
        ("AVIF", photo, {"exif": exif}),
    ]
    files = []
    for format_name, image, options in variants:
        file = io.BytesIO()
        image.save(file, format_name, **options)
        files.append((format_name, file.getvalue()))
    return files


def mutate(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One to three kinds of damage, most of it near the beginning, where the headers are."""
    for _ in range(generator.integers(1, 4)):
        if len(data) < 8:
            return data
        end = len(data) if generator.random() < 0.5 else min(len(data), 200)
        start, stop = sorted(int(place) for place in generator.integers(0, end, 2))
        damage = generator.integers(0, 7)
        changed = bytearray(data)
        if damage <= 1:
            for place in generator.integers(0, end, generator.integers(1, 9)):
                changed[place] ^= 1 << generator.integers(0, 8)
        elif damage == 2:
            del changed[int(generator.integers(1, len(data))) :]
        elif damage == 3:
            del changed[start:stop]
        elif damage == 4:
            changed[start:start] = data[start:stop]
        elif damage == 5:
            changed[start : start + 4] = generator.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
        else:
            changed[start:] = other[min(start, len(other) - 1) :]
        data = bytes(changed)
    # A PNG's checksums would stop nearly all damage at the door: in half of them they are made right again.
    return with_checksums(data) if data.startswith(b"\x89PNG") and generator.random() < 0.5 else data


def with_checksums(png: bytes) -> bytes:
    fixed, place = bytearray(png), 8
    while place + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, place)
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


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
