"""Bytes of an image file → RGB array, by the fastest decoder that reads the file.

Most JPEG files are read by torchvision's decoder, all others by Pillow; pixels and errors are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from captionlib.images.decode import MAX_PIXELS, decode_image
from captionlib.images.plain_jpegs import decode_plain_jpeg


@dataclass(frozen=True)
class DecodedPixels:
    """A picture as an array, and the size that its file has."""

    pixels: np.ndarray
    """HWC uint8 RGB in [0, 255], upright; smaller than `width` × `height` if it was reduced while it was decoded."""
    width: int
    """In pixels, as stored, after the EXIF turn."""
    height: int
    """In pixels, as stored, after the EXIF turn."""


def decode_pixels(data: bytes, *, target_side: int | None = None, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
    """As `decode_image`, with the same pixels and the same errors, into an array: faster for most JPEG files."""
    pixels = decode_plain_jpeg(data, target_side, max_pixels)
    if pixels is not None:
        return DecodedPixels(pixels, pixels.shape[1], pixels.shape[0])
    decoded = decode_image(data, target_side=target_side, max_pixels=max_pixels)
    return DecodedPixels(np.asarray(decoded.image), decoded.width, decoded.height)
