"""PNG files with damaged metadata: browsers show them, Pillow refuses them."""

from __future__ import annotations

import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def without_damaged_metadata(data: bytes) -> bytes:
    """Drop the ancillary chunks whose checksum is wrong, as libpng does (PNG specification, sections 5.3 and 13.1).

    Args:
        data: a whole PNG file.

    Returns:
        The same bytes if there is no such chunk.
    """
    kept = [_SIGNATURE]
    place = len(_SIGNATURE)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        is_ancillary = bool(data[place + 4] & 0x20)  # ancillary chunks have names that begin with a lower-case letter
        is_damaged = zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big")
        if not (is_ancillary and is_damaged and end <= len(data)):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])
