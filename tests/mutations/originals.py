"""Small image files of every format in its variants, and large ones that compress to little."""

from __future__ import annotations

import io
import struct
import typing
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  registers itself with Pillow
from PIL import Image, ImageCms, PngImagePlugin

PHOTOS = Path(__file__).parents[1] / "photos"


def originals() -> list[tuple[str, bytes]]:
    """Small files of every format in their variants: (format, file)."""
    pillow_heif.register_heif_opener()
    photo = Image.open(PHOTOS / "astronaut.jpg").resize((72, 56))
    palette, rgba, grey = photo.quantize(64), photo.convert("RGBA"), photo.convert("L")
    rgba.putalpha(grey)
    grey_16 = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    as_float = Image.fromarray(np.asarray(grey).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 3000, zip=True)
    text.add_itxt("c", "d" * 300, zip=True)
    frames: dict[str, typing.Any] = {"save_all": True, "append_images": [photo.rotate(90), photo.rotate(180)]}
    variants: list[tuple[str, Image.Image, dict[str, typing.Any]]] = [
        ("JPEG", photo, {"exif": exif}),
        ("JPEG", photo, {"progressive": True, "icc_profile": profile}),
        ("JPEG", grey, {"restart_marker_blocks": 4}),
        ("JPEG", photo.convert("CMYK"), {}),
        ("JPEG", photo.convert("CMYK"), {"progressive": True}),
        ("MPO", photo, {"save_all": True, "append_images": [photo.rotate(90)]}),
        ("PNG", photo, {"exif": exif, "icc_profile": profile, "pnginfo": text}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", rgba, {}),
        ("PNG", grey_16, {}),
        ("PNG", photo.convert("1"), {}),
        ("PNG", photo, frames),
        ("GIF", palette, {"transparency": 3, "comment": "c" * 600}),
        ("GIF", photo, {**frames, "loop": 0}),
        ("WEBP", photo, {"exif": exif, "icc_profile": profile}),
        ("WEBP", photo, {}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", rgba, {"quality": 50}),
        ("WEBP", photo, frames),
        ("TIFF", photo, {}),
        ("TIFF", rgba, {"compression": "tiff_lzw"}),
        ("TIFF", photo, {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("TIFF", photo, {"compression": "jpeg"}),
        ("TIFF", photo, {"compression": "packbits", "tiffinfo": {278: 4}, "big_tiff": True}),
        ("TIFF", photo.convert("1"), {"compression": "group4"}),
        ("TIFF", photo.convert("1"), {"compression": "group3"}),
        ("TIFF", photo.convert("CMYK"), {"compression": "zstd"}),
        ("TIFF", palette, {"compression": "lzma"}),
        ("TIFF", grey_16, {}),
        ("TIFF", as_float, {}),
        ("TIFF", photo.resize((144, 112)), {**frames, "append_images": [photo]}),
        ("BMP", photo, {}),
        ("BMP", palette, {}),
        ("BMP", photo.convert("1"), {}),
        ("AVIF", photo, {"exif": exif}),
        ("AVIF", rgba, {"speed": 9}),
        ("AVIF", photo, {**frames, "speed": 9}),
        ("HEIF", photo, {"exif": exif}),
        ("HEIF", rgba, {}),
        ("HEIF", photo, frames),
        ("JPEG2000", photo, {}),
        ("JPEG2000", rgba, {"tile_size": (32, 32), "irreversible": True, "quality_layers": [40, 20, 5]}),
        ("JPEG2000", grey, {"no_jp2": True, "num_resolutions": 3, "progression": "RPCL"}),
        ("JXL", photo, {"use_container": True, "exif": exif.tobytes()}),
        ("JXL", rgba, {}),
        ("JXL", photo, {"lossless": True}),
    ]
    files = []
    for format_name, image, options in variants:
        file = io.BytesIO()
        image.save(file, format_name, **options)
        files.append(("JPEG" if format_name == "MPO" else format_name, file.getvalue()))
    return [
        *files,
        ("PNG", interlaced_png(np.asarray(photo))),
        ("TIFF", tiled_tiff(np.asarray(photo.resize((64, 48))))),
        ("BMP", run_length_bmp(np.asarray(palette))),
    ]


def large_originals() -> list[tuple[str, bytes]]:
    """Files of a few kilobytes whose image is near the limit of pixels: (format, file)."""
    side = 8000
    flat = Image.new("RGB", (side, side), (200, 30, 30))
    grey = flat.convert("L")
    variants: list[tuple[str, Image.Image, dict[str, typing.Any]]] = [
        ("JPEG", grey, {"progressive": True}),
        ("PNG", Image.new("1", (side, side)), {}),
        ("PNG", grey, {}),
        ("GIF", grey, {"optimize": False}),
        ("WEBP", flat, {"lossless": True, "quality": 0, "method": 0}),
        ("TIFF", Image.new("1", (side, side)), {"compression": "group4"}),
        ("JXL", Image.new("RGB", (2000, 2000)), {"effort": 1}),
        ("JPEG2000", grey.resize((4000, 4000)), {}),
        ("AVIF", Image.new("RGB", (4000, 4000)), {"speed": 10}),
    ]
    files = []
    for format_name, image, options in variants:
        file = io.BytesIO()
        image.save(file, format_name, **options)
        files.append((format_name, file.getvalue()))
    return files


def interlaced_png(pixels: np.ndarray) -> bytes:
    """A PNG in Adam7's seven passes (PNG specification, section 8.1) of uint8 (H, W, 3)."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = [pixels[top::down, left::right] for top, left, down, right in starts]
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiled_tiff(pixels: np.ndarray, side: int = 16) -> bytes:
    """A TIFF of uncompressed tiles (TIFF 6.0, section 15) of uint8 (H, W, 3), H and W multiples of `side`."""
    height, width, _ = pixels.shape
    tiles = [pixels[y : y + side, x : x + side] for y in range(0, height, side) for x in range(0, width, side)]
    size = side * side * 3
    after = 8 + 2 + 12 * 11 + 4
    data = after + 6 + 8 * len(tiles)
    offsets = struct.pack(f"<{len(tiles)}I", *(data + i * size for i in range(len(tiles))))
    entries = [
        (254, 4, 1, 0), (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, after), (259, 3, 1, 1), (262, 3, 1, 2),
        (277, 3, 1, 3), (322, 3, 1, side), (323, 3, 1, side), (324, 4, len(tiles), after + 6),
        (325, 4, len(tiles), after + 6 + 4 * len(tiles)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    counts = struct.pack(f"<{len(tiles)}I", *[size] * len(tiles))
    head = struct.pack("<2sHI", b"II", 42, 8) + directory + bytes(4) + struct.pack("<3H", 8, 8, 8)
    return head + offsets + counts + b"".join(tile.tobytes() for tile in tiles)


def run_length_bmp(indices: np.ndarray) -> bytes:
    """A BMP of 8-bit run lengths of palette indices, uint8 (H, W): half of the rows as runs, half as they are."""
    height, width = indices.shape
    rows = bytearray()
    for number, row in enumerate(indices[::-1].tolist()):
        if number % 2:
            rows += bytes((0, width, *row)) + bytes(width % 2)
        else:
            rows += b"".join(bytes((1, index)) for index in row)
        rows += b"\0\0"
    rows += b"\0\1"
    palette = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(256))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 2835, 2835, 256, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + palette + bytes(rows)
