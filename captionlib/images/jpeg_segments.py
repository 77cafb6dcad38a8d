"""JPEG files that are made to need far more work than their pixels do: very many scans, very much EXIF data.

Each scan goes over the whole image, though it may be a few bytes long ("Two Issues with the JPEG Standard" in the
documentation of libjpeg-turbo, which advises to limit their number). Pillow joins the EXIF data of all segments, and
copies what it has with each of them.
"""

from __future__ import annotations

import re

MAX_SCANS = 500
"""Largest number of scans; encoders write up to a few dozen."""
FEW_SCANS = 50
"""So many scans are read whatever the size of the image."""
MAX_EXIF_SEGMENTS = 64
"""Number of segments with EXIF data that are read, of 64 KiB each. The standard allows one."""

_START_OF_SCAN, _APP1 = 0xDA, 0xE1
_EXIF = b"Exif\0\0"
_NEXT_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]", re.DOTALL)  # none of those within the data of a scan


def is_ordinary(data: bytes) -> bool:
    """Whether a file has neither very many scans nor very much EXIF data; fast, and true for nearly all."""
    return data.count(b"\xff\xda") <= FEW_SCANS and data.count(_EXIF) <= MAX_EXIF_SEGMENTS


def max_scans(num_pixels: int, max_pixels: int) -> int:
    """Return the number of scans that an image may have: fewer, the larger it is, so that all of them together read at
    most a hundred times the largest image that is allowed.
    """
    return min(MAX_SCANS, max(FEW_SCANS, 100 * max_pixels // max(1, num_pixels)))


def num_scans(data: bytes) -> int:
    """Count the scans of a file's first image."""
    count, place = 0, 2
    while found := _NEXT_MARKER.search(data, place):
        marker = data[found.start() + 1]
        if marker == 0xD9:
            break
        count += marker == _START_OF_SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def without_excess_exif(data: bytes) -> bytes:
    """Drop the segments with EXIF data that follow the first `MAX_EXIF_SEGMENTS`, up to the first scan."""
    kept, num_exif, place = [data[:2]], 0, 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        is_exif = data[place + 1] == _APP1 and data.startswith(_EXIF, place + 4)
        num_exif += is_exif
        if not is_exif or num_exif <= MAX_EXIF_SEGMENTS:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])
