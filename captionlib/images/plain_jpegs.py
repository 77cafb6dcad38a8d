"""Decodes plain JPEG files with torchvision, which takes a third less time than Pillow.

Most photos are plain: upright, grey or three-channel, decoded at full size. Both libraries use libjpeg-turbo, so their
pixels are identical; Pillow additionally copies the image through a buffer of four bytes per pixel. All other files,
and files that torchvision rejects, are left to Pillow, which also gives the better error message.

Shapes: H, W height and width of the image.
"""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from captionlib.images.cut_jpegs import is_fill
from captionlib.images.decode import orientation_of, silence_pillow
from captionlib.images.jpeg_segments import is_ordinary

_START = b"\xff\xd8\xff"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive (ITU T.81, table B.1)
_OTHER_FRAMES = set(range(0xC0, 0xD0)) - _FRAMES - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_STANDALONE = {0x00, 0x01, *range(0xD0, 0xDA), 0xFF}
_RGB = 3  # value of torchvision's ImageReadMode


def decode_plain_jpeg(data: bytes, target_side: int | None, max_pixels: int) -> np.ndarray | None:
    """Decode a plain JPEG file; return None for any other file.

    Args:
        data: the whole file.
        target_side: as for `captionlib.images.decode.decode_image`; a file that Pillow would reduce is not plain.
        max_pixels: a file with more pixels is not plain.

    Returns:
        HWC uint8 (H, W, 3) in [0, 255], as decoded by Pillow.
    """
    size = _plain_size(data)
    if size is None or size[0] * size[1] > max_pixels or not is_ordinary(data):
        return None
    if target_side is not None and min(size) >= 2 * target_side:
        return None  # Pillow can decode it at 1/2, 1/4 or 1/8 of its size, which is even faster
    decode = _decoder()
    if decode is None or not _is_plain_to_pillow(data, size):
        return None
    import torch

    try:
        picture = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)  # (3, H, W)
    except RuntimeError:
        return None
    pixels: np.ndarray = picture.permute(1, 2, 0).numpy()
    if pixels.shape != (size[1], size[0], 3) or is_fill(pixels[-1, -1]):
        return None  # the end of the file may be missing
    return pixels


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the file's markers; None unless the markers up to the first scan are contiguous.

    Pillow and libjpeg search differently for the next marker if there is other data between two of them. Without such
    gaps both are guaranteed to see the same frame, so that no file can state a small size to one of them and a huge
    size to the other.
    """
    if not data.startswith(_START):
        return None
    size = None
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        if data[place] != 0xFF or marker in _STANDALONE or marker in _OTHER_FRAMES:
            return None
        if marker == _START_OF_SCAN:
            return size
        if marker in _FRAMES:
            header = data[place + 4 : place + 10]
            if size is not None or len(header) < 6 or header[0] != 8 or header[5] not in (1, 3):
                return None
            size = int.from_bytes(header[3:5], "big"), int.from_bytes(header[1:3], "big")
            if 0 in size:
                return None
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if length < 2:
            return None
        place += 2 + length
    return None


def _is_plain_to_pillow(data: bytes, size: tuple[int, int]) -> bool:
    """Whether Pillow accepts the header and would neither rotate the image nor convert its colours."""
    silence_pillow()
    try:
        image = JpegImageFile(io.BytesIO(data), "")
    except Exception:  # Pillow's parsers raise nearly every class of exception on damaged bytes
        return False
    return image.size == size and image.mode in ("L", "RGB") and orientation_of(image) == 1


@cache
def _decoder() -> Any:
    """Return torchvision's operator `decode_jpeg(data, mode)`; None if torchvision was built without it.

    Only its library is loaded: importing torchvision takes 1.5 seconds in each decoding process.
    """
    import torch

    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(str(library))
                return torch.ops.image.decode_jpeg.default
            except (OSError, AttributeError, RuntimeError):
                # torchvision was built without libjpeg or without this operator.
                continue
    return None
