"""Image files as trees of parts: segments, chunks, boxes, blocks, entries of directories.

A parser splits a file without loss: the parts of an unchanged file, joined, are the file. It stops where it does not
understand the bytes any more, and keeps the rest as one part. A part can state its true length and checksum again after
a change ("mended"), so that decoders go on to what it contains, or keep the old ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Length:
    """Where a part states its length, in its head."""

    place: int
    size: int
    order: Literal["big", "little"]
    bias: int = 0
    """Stated length minus length of the content."""
    unit: int = 1
    """Bytes that count as one."""


@dataclass
class Part:
    """Head, content, tail; the content is either bytes or parts."""

    kind: str
    head: bytes = b""
    body: bytes = b""
    parts: list[Part] | None = None
    length: Length | None = None
    lie: int | None = None
    """Stated instead of the true length."""
    checksum: bytes = b""
    """CRC of a PNG chunk, behind its content."""
    padding: bytes = b""
    """To an even length, in RIFF."""

    def to_bytes(self, mend: bool) -> bytes:
        """Join head, content and tail.

        Args:
            mend: state the true lengths and checksums.
        """
        content = self.body if self.parts is None else b"".join(part.to_bytes(mend) for part in self.parts)
        head = bytearray(self.head)
        if self.length is not None and (mend or self.lie is not None):
            stated = (len(content) + self.length.bias) // self.length.unit if self.lie is None else self.lie
            start, stop = self.length.place, self.length.place + self.length.size
            head[start:stop] = (stated % 256**self.length.size).to_bytes(self.length.size, self.length.order)
        checksum, padding = self.checksum, self.padding
        if mend and checksum:
            checksum = zlib.crc32(head[4:] + content).to_bytes(4, "big")
        if mend and self.kind.startswith("RIFF "):
            padding = b"\0" * (len(content) % 2)
        return bytes(head) + content + checksum + padding

    def lists(self) -> Iterator[list[Part]]:
        """Every list of parts in this one, the outermost first."""
        if self.parts is not None:
            yield self.parts
            for part in self.parts:
                yield from part.lists()


@dataclass
class Reader:
    """Takes a file to pieces from its beginning to its end."""

    data: bytes
    place: int = 0
    parts: list[Part] = field(default_factory=list)

    def left(self) -> int:
        """Number of bytes that have not been taken."""
        return len(self.data) - self.place

    def number(self, offset: int, size: int, order: Literal["big", "little"] = "big") -> int:
        """A number at so many bytes from here; 0 beyond the end."""
        start = self.place + offset
        return int.from_bytes(self.data[start : start + size], order)

    def take(self, size: int) -> bytes:
        """The next bytes; fewer at the end."""
        taken = self.data[self.place : self.place + max(0, size)]
        self.place += len(taken)
        return taken

    def take_part(self, kind: str, head: int, body: int, length: Length | None = None) -> Part:
        """The next bytes as a part."""
        part = Part(kind, self.take(head), self.take(body), length=length)
        self.parts.append(part)
        return part

    def end(self) -> list[Part]:
        """All parts, with the rest as the last of them."""
        if self.left():
            self.parts.append(Part("rest", body=self.take(self.left())))
        return self.parts
