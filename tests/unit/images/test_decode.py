"""Decoding: every format and orientation against the picture that went in, every fault against its kind."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionlib.images.decode import ImageDecodeError, decode_image

PHOTOS = Path(__file__).parents[2] / "photos"
ORIENTATION = 0x0112


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def quadrants(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green / blue, yellow: tells all eight orientations apart. Borders lie on JPEG's block borders."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :, : width // 2] = (10, 10, 250)
    pixels[height // 2 :, width // 2 :] = (250, 250, 10)
    return Image.fromarray(pixels)


def assert_looks_like(image: Image.Image, expected: Image.Image, tolerance: float = 4) -> None:
    assert image.mode == "RGB"
    assert image.size == expected.size
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16))
    assert difference.mean() < tolerance


def error_kind(data: bytes, **options: int) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data, **options)
    assert str(caught.value).startswith(f"{caught.value.kind}: ")
    return caught.value.kind


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int, bits: int = 8, colour_type: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


# ---- formats and modes ----


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("BMP", {}),
        ("GIF", {}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_every_format_gives_the_picture_back(format_name: str, options: dict[str, object]) -> None:
    decoded = decode_image(encode(quadrants(), format_name, **options))
    assert (decoded.width, decoded.height) == (96, 64)
    assert_looks_like(decoded.image, quadrants())


def test_photos_of_the_project_decode() -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))
    assert len(photos) >= 8
    for photo in photos:
        decoded = decode_image(photo.read_bytes())
        assert decoded.image.size == (decoded.width, decoded.height)
        assert decoded.image.mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = quadrants().convert("L").point(lambda value: 255 if value > 128 else 0).convert("RGB")
    format_name = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    assert_looks_like(decode_image(encode(image.convert(mode), format_name)).image, image)


def test_cmyk_jpeg_with_adobe_inverted_inks() -> None:
    data = encode(quadrants().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_looks_like(decode_image(data).image, quadrants(), tolerance=6)


def test_ycck_jpeg() -> None:
    # The inverted picture as luma and chroma, and no black; Pillow inverts all four planes when it saves.
    luma_and_chroma = [
        band.point(lambda value: 255 - value)
        for band in Image.eval(quadrants(), lambda value: 255 - value).convert("YCbCr").split()
    ]
    planes = Image.merge("CMYK", [*luma_and_chroma, Image.new("L", quadrants().size, 0)])
    data = bytearray(encode(planes, "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2  # the marker's transform code: YCCK
    assert_looks_like(decode_image(bytes(data)).image, quadrants())


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for format_name in ("PNG", "TIFF"):
        pixels = np.asarray(decode_image(encode(Image.fromarray(values), format_name)).image)
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
        assert (pixels == pixels[:, :, :1]).all()


def test_16_bit_rgb_png_keeps_the_high_byte() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 32768, 65535, 256, 512, 1024)
    data = png_header(2, 1, bits=16) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert np.asarray(decode_image(data).image).tolist() == [[[0, 128, 255], [1, 2, 4]]]


def test_float_and_32_bit_tiff_are_stretched_from_black_to_white() -> None:
    for values in (np.array([[-1.0, 0.0, np.nan, 1.0]], np.float32), np.array([[-10, 0, -10, 10]], np.int32)):
        pixels = np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")).image)
        assert pixels[0, :, 0].tolist() == [0, 128, 0, 255]


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_float_tiff_without_contrast_is_black(value: float) -> None:
    data = encode(Image.fromarray(np.full((3, 4), value, np.float32)), "TIFF")
    assert np.asarray(decode_image(data).image).max() == 0


# ---- transparency ----


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 128))
    image.putpixel((2, 0), (200, 0, 0, 0))
    for format_name in ("PNG", "TIFF"):
        pixels = np.asarray(decode_image(encode(image, format_name)).image)
        assert pixels.tolist() == [[[200, 0, 0], [227, 127, 127], [255, 255, 255]]]


def test_grey_with_alpha_lies_on_white() -> None:
    image = Image.new("LA", (2, 1), (40, 255))
    image.putpixel((1, 0), (40, 0))
    assert np.asarray(decode_image(encode(image, "PNG")).image)[0, :, 0].tolist() == [40, 255]


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_transparent_palette_entry_lies_on_white(format_name: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)
    data = encode(image, format_name, transparency=1)
    assert np.asarray(decode_image(data).image).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_transparent_colour_of_a_png_lies_on_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    data = encode(image, "PNG", transparency=(9, 9, 9))
    assert np.asarray(decode_image(data).image).tolist() == [[[1, 2, 3], [255, 255, 255]]]


# ---- animations and pages ----


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_several(format_name: str) -> None:
    frames = [Image.new("RGB", (32, 32), "white") for _ in range(3)]
    data = encode(quadrants(32, 32), format_name, save_all=True, append_images=frames)
    assert_looks_like(decode_image(data).image, quadrants(32, 32), tolerance=8)


# ---- orientation ----

# What a camera that was held so has stored: the turn that makes the picture upright, undone.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_turn(format_name: str, orientation: int) -> None:
    turn = STORED[orientation]
    stored = quadrants() if turn is None else quadrants().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode_image(encode(stored, format_name, exif=exif))
    assert (decoded.width, decoded.height) == (96, 64)
    assert_looks_like(decoded.image, quadrants())


def test_size_is_that_of_the_turned_file_also_at_reduced_scale() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    decoded = decode_image(encode(quadrants(640, 401), "JPEG", exif=exif), target_side=100)
    assert (decoded.width, decoded.height) == (401, 640)
    assert decoded.image.size == (101, 160)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(40)]
)
def test_damaged_exif_does_not_matter(exif: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format_name in ("JPEG", "PNG", "WEBP"):
            assert_looks_like(decode_image(encode(quadrants(), format_name, exif=exif)).image, quadrants())


def test_exif_with_an_impossible_orientation_is_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    assert_looks_like(decode_image(encode(quadrants(), "JPEG", exif=exif)).image, quadrants())


# ---- reduced scale ----


@pytest.mark.parametrize(
    ("side", "target_side", "decoded_side"),
    [(448, 224, 224), (447, 224, 447), (896, 224, 224), (1800, 224, 225), (5000, 224, 625), (100, 224, 100)],
)
def test_jpeg_is_reduced_as_far_as_the_shorter_side_allows(side: int, target_side: int, decoded_side: int) -> None:
    data = encode(Image.new("RGB", (2 * side, side)), "JPEG")
    decoded = decode_image(data, target_side=target_side)
    assert (decoded.width, decoded.height) == (2 * side, side)
    assert decoded.image.size[1] == decoded_side


def test_reduced_jpeg_is_the_same_picture() -> None:
    data = (PHOTOS / "astronaut.jpg").read_bytes()
    full = decode_image(data).image.resize((256, 256), Image.Resampling.BICUBIC)
    assert_looks_like(decode_image(data, target_side=256).image, full, tolerance=3)


def test_other_formats_stay_at_full_size() -> None:
    assert decode_image(encode(quadrants(640, 480), "PNG"), target_side=100).image.size == (640, 480)


# ---- faults ----


def test_no_bytes() -> None:
    assert error_kind(b"") == "EmptyFile"


@pytest.mark.parametrize(
    "data",
    [
        b"This is a text file that somebody named cat.jpg.\n",
        b"<!DOCTYPE html><html><title>404 Not Found</title></html>",
        b"BMW is a maker of cars",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        b"\xff\xd8",
    ],
)
def test_not_an_image(data: bytes) -> None:
    assert error_kind(data) == "NotAnImage"


@pytest.mark.parametrize(
    "data",
    [
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        encode(quadrants(), "PPM"),
        encode(quadrants(), "ICO"),
    ],
)
def test_formats_that_are_refused_by_name(data: bytes) -> None:
    assert error_kind(data) == "UnsupportedImage"


def test_12_bit_jpeg_is_unsupported() -> None:
    data = bytearray(encode(quadrants(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    assert error_kind(bytes(data)) == "UnsupportedImage"


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("target_side", [0, 200])
def test_truncated_jpeg(options: dict[str, bool], share: float, target_side: int) -> None:
    data = encode(Image.open(PHOTOS / "cat.jpg"), "JPEG", **options)
    cut = data[: int(share * len(data))]
    assert error_kind(cut, **({"target_side": target_side} if target_side else {})) == "TruncatedImage"


@pytest.mark.parametrize("format_name", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_other_formats_truncated(format_name: str, share: float) -> None:
    data = encode(Image.open(PHOTOS / "cat.jpg"), format_name)
    assert error_kind(data[: int(share * len(data))]) == "TruncatedImage"


def test_flipped_byte_in_a_png_is_found_by_its_checksum() -> None:
    data = bytearray(encode(quadrants(), "PNG"))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert error_kind(bytes(data)) == "CorruptImage"


def test_image_of_no_pixels_is_corrupt() -> None:
    assert error_kind(png_header(0, 5) + png_chunk(b"IEND", b"")) == "CorruptImage"


# ---- bombs ----


def test_png_that_states_a_giant_size_is_refused_before_memory_is_taken() -> None:
    header = png_header(60_000, 60_000)
    data = header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    assert error_kind(data) == "ImageTooLarge"
    assert error_kind(data, target_side=224) == "ImageTooLarge"


@pytest.mark.parametrize(("extra_columns", "accepted"), [(0, True), (1, False)])
def test_limit_of_pixels_is_exact(extra_columns: int, accepted: bool) -> None:
    data = encode(Image.new("L", (100 + extra_columns, 50)), "PNG")
    if accepted:
        assert decode_image(data, max_pixels=5000).width == 100
    else:
        assert error_kind(data, max_pixels=5000) == "ImageTooLarge"


@pytest.mark.parametrize("format_name", ["GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_limit_holds_in_every_format(format_name: str) -> None:
    assert error_kind(encode(quadrants(), format_name), max_pixels=100) == "ImageTooLarge"


def resized_jpeg_header(data: bytes, width: int, height: int) -> bytes:
    start = data.index(b"\xff\xc2" if b"\xff\xc2" in data else b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def test_jpeg_counts_by_its_reduced_size() -> None:
    data = encode(Image.new("RGB", (800, 800)), "JPEG")
    assert decode_image(data, target_side=100, max_pixels=800 * 800 // 16).image.size == (100, 100)
    assert error_kind(data, max_pixels=800 * 800 // 16) == "ImageTooLarge"
    assert error_kind(data, target_side=400, max_pixels=800 * 800 // 16) == "ImageTooLarge"


def test_progressive_jpeg_is_held_whole_and_so_refused_earlier() -> None:
    data = encode(Image.new("RGB", (800, 800)), "JPEG", progressive=True)
    assert error_kind(data, target_side=100, max_pixels=800 * 800 // 16) == "ImageTooLarge"
    assert decode_image(data, target_side=100, max_pixels=800 * 800 // 2).image.size == (100, 100)


def test_jpeg_with_a_scan_per_channel_is_held_whole_too() -> None:
    data = encode(Image.new("RGB", (800, 800)), "JPEG")
    all_channels = bytes.fromhex("ffda 000c 03 0100 0211 0311 003f00")
    one_channel = bytes.fromhex("ffda 0008 01 0100 003f00")
    assert data.count(all_channels) == 1
    data = data.replace(all_channels, one_channel)
    assert error_kind(data, target_side=100, max_pixels=800 * 800 // 16) == "ImageTooLarge"


def test_jpeg_that_states_four_gigapixels() -> None:
    data = resized_jpeg_header(encode(quadrants(), "JPEG"), 65_535, 65_535)
    assert error_kind(data, target_side=224) == "ImageTooLarge"


def test_100_megapixel_jpeg_decodes_at_reduced_scale() -> None:
    data = encode(Image.new("L", (10_000, 10_000), 77), "JPEG")
    decoded = decode_image(data, target_side=224)
    assert (decoded.width, decoded.height) == (10_000, 10_000)
    assert decoded.image.size == (1250, 1250)
    assert decoded.image.getpixel((600, 600)) == (77, 77, 77)


# ---- behaviour around it ----


def test_error_survives_pickling() -> None:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(b"no image")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.kind, str(copy)) == (caught.value.kind, str(caught.value))


def test_target_side_is_checked() -> None:
    with pytest.raises(ValueError, match="target_side must be at least 1 pixel, got 0"):
        decode_image(encode(quadrants(), "PNG"), target_side=0)


def test_threads_decode_without_touching_the_warnings_of_others() -> None:
    data = encode(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    decode_image(data)
    before = list(warnings.filters)
    results: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda: results.extend(decode_image(data).image.size for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(96, 64)] * 80
    assert list(warnings.filters) == before
