"""A parser for the structure of each format: bytes → a tree of parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from tests.mutations.parts import Length, Part, Reader

_CONTAINERS = {
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"iprp", b"ipco", b"jp2h", b"res "), 0),
    b"meta": 4,
    b"iinf": 6,
    b"iref": 4,
    b"dref": 8,
    b"stsd": 8,
}
"""Boxes that contain boxes, behind so many bytes (ISO 14496-12)."""


def parse(data: bytes) -> Part:
    """Parse a file of any known format; of another, one part with all bytes."""
    for signature, parser in _PARSERS.items():
        if re.match(signature, data, re.DOTALL):
            return Part("file", parts=parser(data))
    return Part("file", parts=[Part("rest", body=data)])


def _jpeg(data: bytes) -> list[Part]:
    reader = Reader(data)
    reader.take_part("start", 2, 0)
    while reader.left() >= 4 and data[reader.place] == 0xFF and data[reader.place + 1] not in (0, 0xD9, 0xFF):
        marker = data[reader.place + 1]
        reader.take_part(f"segment {marker:02x}", 4, reader.number(2, 2) - 2, Length(2, 2, "big", 2))
        if marker == 0xDA:
            header = reader.parts.pop()
            end = re.compile(rb"\xff[^\0\xff\xd0-\xd7]", re.DOTALL).search(data, reader.place)
            pixels = reader.take((end.start() if end else len(data)) - reader.place)
            restarts = [Part("pixels", body=piece) for piece in re.split(rb"(?=\xff[\xd0-\xd7])", pixels)]
            reader.parts.append(Part("scan", parts=[header, *restarts]))
    return reader.end()


def _png(data: bytes) -> list[Part]:
    reader = Reader(data)
    reader.take_part("signature", 8, 0)
    while reader.left() >= 12:
        name = data[reader.place + 4 : reader.place + 8]
        chunk = reader.take_part(f"PNG {name!r}", 8, reader.number(0, 4), Length(0, 4, "big"))
        chunk.checksum = reader.take(4)
    return reader.end()


def _riff(data: bytes) -> list[Part]:
    file = Part("file", data[:12], parts=_riff_chunks(data[12:]), length=Length(4, 4, "little", 4))
    return [file]


def _riff_chunks(data: bytes) -> list[Part]:
    reader = Reader(data)
    while reader.left() >= 8:
        name, size = data[reader.place : reader.place + 4], reader.number(4, 4, "little")
        length = Length(4, 4, "little")
        chunk = reader.take_part(f"RIFF {name!r}", 8, size, length)
        if name == b"ANMF" and len(chunk.body) > 16:
            chunk.head, chunk.parts, chunk.body = chunk.head + chunk.body[:16], _riff_chunks(chunk.body[16:]), b""
            length.bias = 16
        chunk.padding = reader.take(size % 2)
    return reader.end()


def _gif(data: bytes) -> list[Part]:
    reader = Reader(data)
    reader.take_part("signature", 6, 0)
    flags = data[10] if len(data) > 10 else 0
    reader.take_part("screen", 0, 7)
    if flags & 0x80:
        reader.take_part("palette", 0, 3 << (flags & 7) + 1)
    while reader.left() > 2:
        if data[reader.place] == 0x21:
            block = Part(f"extension {data[reader.place + 1]:02x}", reader.take(2), parts=[])
        elif data[reader.place] == 0x2C:
            flags = data[reader.place + 9] if reader.left() > 9 else 0
            reader.take_part("image", 0, 10)
            if flags & 0x80:
                reader.take_part("palette", 0, 3 << (flags & 7) + 1)
            block = Part("pixels", reader.take(1), parts=[])
        else:
            break
        blocks = Reader(data, reader.place)
        while blocks.left() and data[blocks.place]:
            blocks.take_part("block", 1, data[blocks.place], Length(0, 1, "big"))
        blocks.take_part("end of blocks", 0, 1)
        block.parts, reader.place = blocks.parts, blocks.place
        reader.parts.append(block)
    return reader.end()


def _tiff(data: bytes) -> list[Part]:
    order: Literal["big", "little"] = "little" if data[:2] == b"II" else "big"
    is_big = data[2:4] in (b"+\0", b"\0+")
    count_size, entry_size, offset_size, first = (8, 20, 8, 8) if is_big else (2, 12, 4, 4)
    directories: list[tuple[int, int]] = []
    place = int.from_bytes(data[first : first + offset_size], order)
    while first < place < len(data) and len(directories) < 8:
        entries = int.from_bytes(data[place : place + count_size], order)
        end = place + count_size + entries * entry_size
        if end + offset_size > len(data) or any(start <= place < stop for start, stop in directories):
            break
        directories.append((place, end))
        place = int.from_bytes(data[end : end + offset_size], order)
    reader = Reader(data)
    reader.take_part("header", 0, first + offset_size)
    for start, stop in sorted(directories):
        if reader.place < start:
            reader.take_part("data", 0, start - reader.place)
        length = Length(0, count_size, order, unit=entry_size)
        directory = Part("directory", reader.take(count_size), parts=[], length=length)
        while reader.place < stop:
            entry = Part("entry", body=reader.take(min(entry_size, stop - reader.place)))
            directory.parts.append(entry)  # type: ignore[union-attr]
        reader.parts.append(directory)
        reader.take_part("next directory", 0, offset_size)
    return reader.end()


def _bmp(data: bytes) -> list[Part]:
    reader = Reader(data)
    reader.take_part("file header", 0, 14)
    size = reader.number(0, 4, "little")
    start = int.from_bytes(data[10:14], "little")
    reader.take_part("header", 4, min(size, 200) - 4, Length(0, 4, "little", 4))
    if reader.place < start:
        reader.take_part("palette", 0, start - reader.place)
    return reader.end()


def _boxes(data: bytes) -> list[Part]:
    reader = Reader(data)
    while reader.left() >= 8:
        size, name = reader.number(0, 4), data[reader.place + 4 : reader.place + 8]
        prefix = _CONTAINERS.get(name)
        if size == 0:
            reader.take_part(f"box {name!r}", 8, reader.left())
        elif size == 1:
            reader.take_part(f"box {name!r}", 16, reader.number(8, 8) - 16, Length(8, 8, "big", 16))
        elif size < 8:
            break
        else:
            length = Length(0, 4, "big", 8 + (prefix or 0))
            reader.take_part(f"box {name!r}", 8 + (prefix or 0), size - 8 - (prefix or 0), length)
        box = reader.parts[-1]
        if prefix is not None and len(box.head) == 8 + prefix:
            box.parts, box.body = _boxes(box.body), b""
        elif name == b"jp2c":
            box.parts, box.body = _jpeg_2000(box.body), b""
    return reader.end()


def _jpeg_2000(data: bytes) -> list[Part]:
    reader = Reader(data)
    reader.take_part("start", 2, 0)
    while reader.left() >= 4 and data[reader.place] == 0xFF and data[reader.place + 1] not in (0xD9, 0x93):
        marker, start = data[reader.place + 1], reader.place
        reader.take_part(f"segment {marker:02x}", 4, reader.number(2, 2) - 2, Length(2, 2, "big", 2))
        if marker == 0x90:  # of a tile: index, length from this marker on, …
            end = start + int.from_bytes(data[start + 6 : start + 10], "big")
            header = reader.parts.pop()
            pixels = Part("pixels", body=reader.take((end if end > start else len(data)) - reader.place))
            reader.parts.append(Part("tile", parts=[header, pixels]))
    return reader.end()


_PARSERS: dict[bytes, Callable[[bytes], list[Part]]] = {
    rb"\xff\xd8": _jpeg,
    rb"\x89PNG": _png,
    rb"RIFF": _riff,
    rb"GIF8": _gif,
    rb"II[*+]|MM.[*+]": _tiff,
    rb"BM": _bmp,
    rb"\xff\x4f\xff\x51": _jpeg_2000,
    rb"\0\0\0.(ftyp|jP  |JXL )": _boxes,
}
