"""JPEGs that came to an actor as they are → pixels, put among those that came decoded.

Shapes: B images without an error, S side of the square input.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captionlib.images import ImageDecodeError
from captionlib.jpegs import JpegDecoder, PlainJpeg


def with_decoded(
    decoder: JpegDecoder, decoded: np.ndarray, jpegs: pa.Array, facts: Mapping[str, pa.Array]
) -> tuple[np.ndarray, pa.Array]:
    """The pixels of a part's images, and its errors.

    Args:
        decoded: uint8 (B - J, S, S, 3), of the images that were decoded before.
        jpegs: B files, of which J are not null.
        facts: `images` of `schemas.DECODED`, by column; B of them have no error.

    Returns:
        uint8 (B', S, S, 3) of the images without an error in the part's order; the column `error`, in which B - B'
        more have one.
    """
    is_good = facts["error"].is_null()
    files = jpegs.to_pylist()
    sizes = zip(*(facts[name].filter(is_good).to_pylist() for name in ("width", "height")), strict=True)
    plain = [PlainJpeg(data, *size) for data, size in zip(files, sizes, strict=True) if data is not None]
    now, before = iter(decoder(plain)), iter(decoded)
    found = [next(before if data is None else now) for data in files]
    pixels = [square for square in found if not isinstance(square, ImageDecodeError)]
    said = pa.array([str(item) if isinstance(item, ImageDecodeError) else None for item in found], pa.string())
    errors = pc.replace_with_mask(facts["error"], is_good, said)
    return (np.stack(pixels) if pixels else decoded[:0]), errors
