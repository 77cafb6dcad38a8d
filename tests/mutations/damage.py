"""Damage to the bytes of image files, wherever they lie: bits, pieces, ends."""

from __future__ import annotations

import struct
import zlib

import numpy as np


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
