"""TIFF files with reduced copies of their first page, as tiled and pyramidal files of archives have them."""

from __future__ import annotations

import contextlib
import io

from PIL.TiffImagePlugin import TiffImageFile

MAX_PAGES = 32
"""Number of pages that are searched. Pillow needs a time for all pages that grows with the square of their number."""

_NEW_SUBFILE_TYPE = 254


def reduced_copy(image: TiffImageFile, data: bytes, target_side: int) -> TiffImageFile | None:
    """Return the smallest reduced copy of the first page whose shorter side is at least `target_side` (TIFF 6.0,
    NewSubfileType).

    Args:
        image: the first page.
        data: the whole file.

    Returns:
        The page, not decoded yet; None if there is none, or only behind a page that is damaged.
    """
    width, height = image.size
    if min(width, height) < 2 * target_side:
        return None
    # Another reader of the file, because one that has met a damaged page cannot return to the first.
    pages = TiffImageFile(io.BytesIO(data), "")
    best, smallest = 0, width
    with contextlib.suppress(Exception):  # EOFError behind the last page; on damaged bytes nearly every class
        for page in range(1, MAX_PAGES):
            pages.seek(page)
            is_copy = pages.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1
            has_shape = abs(pages.size[0] * height - pages.size[1] * width) < 2 * width
            if is_copy and has_shape and min(pages.size) >= target_side and pages.size[0] < smallest:
                best, smallest = page, pages.size[0]
    if not best:
        return None
    copy = TiffImageFile(io.BytesIO(data), "")
    copy.seek(best)
    return copy
