"""JPEG files without their end: how much of the image is missing.

Downloads that break off leave a file that ends early, and many programs that write such a file again add an end marker
to it. libjpeg fills what is missing with grey and reports nothing. So a file without an end marker, or whose last row
has that grey, is decoded again with random bytes at its end: in a complete file they change nothing.

A progressive file that was closed after its first scan is complete, but has less detail; this is not noticed.
"""

from __future__ import annotations

import io
import random
import re

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

MAX_MISSING = 0.02
"""Largest share of an image's rows that may be missing: the file is then decoded as if it was complete."""

END_MARKER = b"\xff\xd9"
_FILL = (127, 128)
"""Every channel of a pixel that was not in the file: half of the range, in CMYK perhaps inverted."""
_RANDOM_BYTES = bytes(random.Random(0).choices(range(255), k=2**14))  # without 0xFF, which begins a marker
_START_OF_SCAN = b"\xff\xda"
_RESTART_INTERVAL = b"\xff\xdd"


def is_fill(pixel: np.ndarray | tuple[int, ...] | int) -> bool:
    """Whether a pixel has the value that libjpeg gives to missing ones."""
    return all(int(channel) in _FILL for channel in np.atleast_1d(pixel))


def missing_share(image: Image.Image, data: bytes, target_side: int | None, *, has_end: bool) -> float:
    """Measure the share of an image's rows, from its lower end, that its file does not contain.

    Args:
        image: decoded from the file, not turned yet.
        data: the whole file.
        target_side: with which the image was decoded, see `captionlib.images.decode.decode_image`.
        has_end: whether libjpeg has found an end marker.
    """
    width, height = image.size
    if has_end and not is_fill(image.getpixel((width - 1, height - 1))):  # type: ignore[arg-type]
        return 0.0
    pixels = np.asarray(image).reshape(height, -1)  # (H, W * channels)
    if has_end and not np.isin(pixels[-1], _FILL).all():
        return 0.0  # less than one row is missing
    again = _decode(_with_random_bytes(data), target_side)
    if again is None or again.shape != pixels.shape:
        return 1.0
    changed = np.flatnonzero((again != pixels).any(axis=1))  # row numbers
    return (height - int(changed[0])) / height if len(changed) else 0.0


def _with_random_bytes(data: bytes) -> bytes:
    """The file with random bytes in place of its end marker, or behind its end if it has none."""
    end = data.rfind(END_MARKER)
    end = len(data) if end < 0 else end
    while data[end - 1] == 0xFF:
        end -= 1
    scan = data.find(_START_OF_SCAN)
    marker = b""
    if _RESTART_INTERVAL in data[:scan]:
        # Decoders skip all bytes before the next restart marker, whose numbers run from 0 to 7.
        restarts = re.findall(rb"\xff[\xd0-\xd7]", data[scan:end])
        marker = bytes((0xFF, 0xD0 + (restarts[-1][1] + 1) % 8 if restarts else 0xD0))
    return data[:end] + marker + _RANDOM_BYTES + END_MARKER


def _decode(data: bytes, target_side: int | None) -> np.ndarray | None:
    """Decode a file to (H, W * channels); None if it cannot be decoded."""
    try:
        image = JpegImageFile(io.BytesIO(data), "")
        if target_side is not None:
            image.draft(None, (target_side, target_side))
        image.load()
    except Exception:  # Pillow raises nearly every class of exception on damaged bytes
        return None
    return np.asarray(image).reshape(image.size[1], -1)
