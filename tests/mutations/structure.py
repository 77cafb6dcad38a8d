"""Damage to the structure of image files, as an attacker or a broken program would do it.

Parts are dropped, repeated, swapped, moved, taken from other files; they change their kind, length and numbers; widths
and heights are wrong. Byte for byte, most of the file stays as it was, so that decoders go far before they notice.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from typing import Literal

from tests.mutations.parsers import parse
from tests.mutations.parts import Part

MAX_BYTES = 400_000
"""A mutation that would make a file longer is left out."""
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 127, 128, 254, 255, 256, 4095, 32767, 32768, 65535, 65536, 2**24)
_LARGE_NUMBERS = (2**31 - 1, 2**31, 2**32 - 1, 2**32 - 2, 2**28, 2**16 + 1, 10**6)
_SIDES = (0, 1, 2, 7, 8, 9, 16, 71, 73, 100, 144, 255, 256, 257, 500, 1000, 4097, 8192, 16383, 16384, 30_000, 65_535)

# What is before a width or a height, bytes until it, its size and order.
_DIMENSIONS: tuple[tuple[bytes, int, int, Literal["big", "little"]], ...] = (
    (rb"\xff[\xc0-\xc2]\0", 4, 2, "big"),
    (rb"\xff[\xc0-\xc2]\0", 6, 2, "big"),
    (rb"IHDR", 0, 4, "big"),
    (rb"IHDR", 4, 4, "big"),
    (rb"fcTL", 4, 4, "big"),
    (rb"fcTL", 8, 4, "big"),
    (rb"GIF8.a", 0, 2, "little"),
    (rb"GIF8.a", 2, 2, "little"),
    (rb",\0\0\0\0", 0, 2, "little"),
    (rb",\0\0\0\0", 2, 2, "little"),
    (rb"VP8X........", 0, 3, "little"),
    (rb"VP8X........", 3, 3, "little"),
    (rb"\x9d\x01\x2a", 0, 2, "little"),
    (rb"\x9d\x01\x2a", 2, 2, "little"),
    (rb"VP8L....\x2f", 0, 2, "little"),
    (rb"VP8L....\x2f", 2, 2, "little"),
    (rb"ANMF..........", 0, 3, "little"),
    (rb"\A(?=BM)", 18, 4, "little"),
    (rb"\A(?=BM)", 22, 4, "little"),
    (rb"\0\x01[\x03\x04]\0\x01\0\0\0", 0, 2, "little"),
    (rb"\x01\x01[\x03\x04]\0\x01\0\0\0", 0, 2, "little"),
    (rb"\x16\x01[\x03\x04]\0\x01\0\0\0", 0, 2, "little"),  # rows per strip
    (rb"\x01\x00\0[\x03\x04]\0\0\0\x01", 0, 2, "big"),
    (rb"\x01\x01\0[\x03\x04]\0\0\0\x01", 0, 2, "big"),
    (rb"ispe\0\0\0\0", 0, 4, "big"),
    (rb"ispe\0\0\0\0", 4, 4, "big"),
    (rb"ihdr", 0, 4, "big"),
    (rb"ihdr", 4, 4, "big"),
    (rb"\xff\x51....", 0, 4, "big"),
    (rb"\xff\x51....", 4, 4, "big"),
    (rb"\xff\x51....", 16, 4, "big"),  # tiles
    (rb"\xff\x51....", 20, 4, "big"),
)


def mutate_structure(data: bytes, other: bytes, generator: random.Random) -> bytes:
    """Change the structure of a file in one to four places.

    Args:
        other: a file that parts are taken from, of the same format or of another.
    """
    root = parse(data)
    for _ in range(generator.choice((1, 1, 2, 2, 3, 4))):
        generator.choices(_MUTATIONS, _WEIGHTS)[0](root, other, generator)
    mutated = root.to_bytes(mend=generator.random() < 0.5)
    if generator.random() < 0.12:
        mutated = _with_other_sides(mutated, generator)
    if generator.random() < 0.06:
        mutated = mutated[: generator.randrange(1, len(mutated) + 1)] if mutated else mutated
    return mutated if len(mutated) <= MAX_BYTES else mutated[:MAX_BYTES]


def _list(root: Part, generator: random.Random) -> list[Part]:
    """A list of parts that is not empty."""
    return generator.choice([parts for parts in root.lists() if parts] or [[Part("rest")]])


def _leaf(root: Part, generator: random.Random) -> Part:
    """A part with bytes. Those of a few bytes are as probable as those of many."""
    leaves = [part for parts in root.lists() for part in parts if part.parts is None]
    kinds = sorted({part.kind for part in leaves})
    if not kinds:
        return Part("rest")
    kind = generator.choice(kinds)
    return generator.choice([part for part in leaves if part.kind == kind])


def _copy(part: Part) -> Part:
    parts = None if part.parts is None else [_copy(inner) for inner in part.parts]
    return Part(part.kind, part.head, part.body, parts, part.length, part.lie, part.checksum, part.padding)


def _drop(root: Part, other: bytes, generator: random.Random) -> None:
    parts = _list(root, generator)
    del parts[generator.randrange(len(parts))]


def _repeat(root: Part, other: bytes, generator: random.Random) -> None:
    parts = _list(root, generator)
    place = generator.randrange(len(parts))
    room = MAX_BYTES // (2 * max(1, len(parts[place].to_bytes(False))))
    times = min(room, generator.choice((1, 1, 1, 2, 3, 10, 60, 700)))
    parts[place:place] = [_copy(parts[place]) for _ in range(times)]


def _swap(root: Part, other: bytes, generator: random.Random) -> None:
    parts = _list(root, generator)
    one, two = generator.randrange(len(parts)), generator.randrange(len(parts))
    parts[one], parts[two] = parts[two], parts[one]


def _move(root: Part, other: bytes, generator: random.Random) -> None:
    source, target = _list(root, generator), _list(root, generator)
    moved = source.pop(generator.randrange(len(source)))
    if not any(inner is target for inner in moved.lists()):  # nothing contains itself
        target.insert(generator.randrange(len(target) + 1), moved)


def _splice(root: Part, other: bytes, generator: random.Random) -> None:
    """A part of another file, in place of one of its kind where there is one, or anywhere."""
    new = generator.choice(_list(parse(other), generator))
    places = [(parts, i) for parts in root.lists() for i, part in enumerate(parts) if part.kind == new.kind]
    if places and generator.random() < 0.7:
        parts, place = generator.choice(places)
        parts[place] = new
    else:
        parts = _list(root, generator)
        parts.insert(generator.randrange(len(parts) + 1), new)


def _cut(root: Part, other: bytes, generator: random.Random) -> None:
    part = _leaf(root, generator)
    part.body = part.body[: generator.randrange(len(part.body) + 1)]


def _grow(root: Part, other: bytes, generator: random.Random) -> None:
    part = _leaf(root, generator)
    place = generator.randrange(len(part.body) + 1)
    size = generator.choice((1, 2, 3, 16, 255, 1000, 70_000))
    piece = part.body[place : place + 16] or b"\0"
    filling = generator.choice((bytes(size), b"\xff" * size, generator.randbytes(size), (piece * size)[:size]))
    part.body = part.body[:place] + filling + part.body[place:]


def _lie(root: Part, other: bytes, generator: random.Random) -> None:
    with_length = [part for parts in root.lists() for part in parts if part.length is not None]
    if with_length:
        part = generator.choice(with_length)
        assert part.length is not None
        true = len(part.to_bytes(False)) - len(part.head) + part.length.bias
        nearby = true + generator.choice((-8, -2, -1, 1, 2, 4, 8))
        part.lie = generator.choice((nearby, 2 * true, generator.choice(_NUMBERS), generator.choice(_LARGE_NUMBERS)))


def _number(root: Part, other: bytes, generator: random.Random) -> None:
    """Another number in place of one, mostly of those at the beginning of a part."""
    part = _leaf(root, generator)
    if not part.body:
        return
    for _ in range(generator.choice((1, 1, 2))):
        size = generator.choice((1, 2, 2, 4, 4, 8))
        end = len(part.body) if generator.random() < 0.3 else min(len(part.body), 48)
        place = generator.randrange(end)
        place -= place % size if generator.random() < 0.7 else 0
        order: Literal["big", "little"] = "big" if generator.random() < 0.5 else "little"
        old = int.from_bytes(part.body[place : place + size], order)
        new = generator.choice(
            (
                generator.choice(_NUMBERS),
                generator.choice(_LARGE_NUMBERS),
                old + generator.choice((-1, 1)),
                2 * old,
                old // 2,
                generator.randrange(2**16),
            )
        )
        changed = bytearray(part.body)
        changed[place : place + size] = (new % 256**size).to_bytes(size, order)
        part.body = bytes(changed[: len(part.body)])


def _flip(root: Part, other: bytes, generator: random.Random) -> None:
    part = _leaf(root, generator)
    changed = bytearray(part.body)
    for _ in range(generator.randrange(1, 6) if changed else 0):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    part.body = bytes(changed)


def _retype(root: Part, other: bytes, generator: random.Random) -> None:
    """The marker or the name of another part of the same list, or a random one."""
    parts = _list(root, generator)
    part, model = generator.choice(parts), generator.choice(parts)
    if part.head and len(model.head) == len(part.head) and generator.random() < 0.6:
        part.head = model.head
    elif len(part.head) >= 2:
        head = bytearray(part.head)
        head[generator.randrange(len(head))] = generator.randrange(256)
        part.head = bytes(head)


def _recompress(root: Part, other: bytes, generator: random.Random) -> None:
    """Damage the compressed content of a PNG chunk behind zlib's checksum, or make it much longer or shorter."""
    compressed = [
        part for parts in root.lists() for part in parts if re.match(r"PNG b'(IDAT|fdAT|zTXt|iTXt|iCCP)", part.kind)
    ]
    if not compressed:
        _flip(root, other, generator)
        return
    part = generator.choice(compressed)
    start = part.body.find(b"\x78") if "IDAT" not in part.kind else 0
    try:
        content = bytearray(zlib.decompress(part.body[max(0, start) :]))
    except zlib.error:
        return
    for _ in range(generator.randrange(1, 5) if content else 0):
        content[generator.randrange(len(content))] = generator.randrange(256)
    content = generator.choice((content, content[: len(content) // 2], content + bytes(10**6), content * 3))
    part.body = part.body[: max(0, start)] + zlib.compress(bytes(content), 1)


def _with_other_sides(data: bytes, generator: random.Random) -> bytes:
    """State another width or height, or both."""
    changed = bytearray(data)
    found = [
        (match.end() + offset, size, order)
        for anchor, offset, size, order in _DIMENSIONS
        for match in re.finditer(anchor, data, re.DOTALL)
        if match.end() + offset + size <= len(data)
    ]
    for place, size, order in generator.sample(found, min(len(found), generator.choice((1, 1, 2)))):
        side = generator.choice((*_SIDES, *_LARGE_NUMBERS[:3]))
        changed[place : place + size] = (side % 256**size).to_bytes(size, order)
    if data.startswith(b"\x89PNG"):
        return parse(bytes(changed)).to_bytes(mend=True)
    return bytes(changed)


_MUTATIONS: tuple[Callable[[Part, bytes, random.Random], None], ...] = (
    _drop, _repeat, _swap, _move, _splice, _cut, _grow, _lie, _number, _flip, _retype, _recompress,
)  # fmt: skip
_WEIGHTS = (1, 2, 1, 1, 2, 1, 1, 2, 6, 2, 2, 1)
