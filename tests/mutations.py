"""Small image files of every format, and damage of every kind to them."""

from __future__ import annotations

import io
import struct
import typing
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).parent / "photos"


def originals() -> list[tuple[str, bytes]]:
    """Small files of every format in their variants: (format, file)."""
    photo = Image.open(PHOTOS / "astronaut.jpg").resize((72, 56))
    palette, rgba = photo.quantize(64), photo.convert("RGBA")
    rgba.putalpha(photo.convert("L"))
    grey_16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    frames = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    variants: list[tuple[str, Image.Image, dict[str, typing.Any]]] = [
        ("JPEG", photo, {"exif": exif}),
        ("JPEG", photo, {"progressive": True}),
        ("JPEG", photo.convert("L"), {"restart_marker_blocks": 4}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("PNG", photo, {"exif": exif}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", rgba, {}),
        ("PNG", grey_16, {}),
        ("PNG", photo, frames),
        ("GIF", palette, {"transparency": 3}),
        ("GIF", photo, frames),
        ("WEBP", photo, {"exif": exif}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", photo, frames),
        ("TIFF", photo, {}),
        ("TIFF", rgba, {"compression": "tiff_lzw"}),
        ("TIFF", photo, {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("TIFF", photo, {"compression": "jpeg"}),
        ("TIFF", photo.convert("1"), {"compression": "group4"}),
        ("TIFF", grey_16, {}),
        ("BMP", photo, {}),
        ("BMP", palette, {}),
        ("AVIF", photo, {"exif": exif}),
    ]
    files = []
    for format_name, image, options in variants:
        file = io.BytesIO()
        image.save(file, format_name, **options)
        files.append((format_name, file.getvalue()))
    return files


def mutate(data: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """One to three kinds of damage, most of it near the beginning, where the headers are."""
    for _ in range(generator.integers(1, 4)):
        if len(data) < 8:
            return data
        end = len(data) if generator.random() < 0.5 else min(len(data), 200)
        start, stop = sorted(int(place) for place in generator.integers(0, end, 2))
        damage = generator.integers(0, 7)
        changed = bytearray(data)
        if damage <= 1:
            for place in generator.integers(0, end, generator.integers(1, 9)):
                changed[place] ^= 1 << generator.integers(0, 8)
        elif damage == 2:
            del changed[int(generator.integers(1, len(data))) :]
        elif damage == 3:
            del changed[start:stop]
        elif damage == 4:
            changed[start:start] = data[start:stop]
        elif damage == 5:
            changed[start : start + 4] = generator.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
        else:
            changed[start:] = other[min(start, len(other) - 1) :]
        data = bytes(changed)
    # A PNG's checksums would stop nearly all damage at the door: in half of them they are made right again.
    return with_checksums(data) if data.startswith(b"\x89PNG") and generator.random() < 0.5 else data


def with_checksums(png: bytes) -> bytes:
    fixed, place = bytearray(png), 8
    while place + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, place)
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)
