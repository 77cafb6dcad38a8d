"""HEIC, JPEG 2000 and JPEG XL: the image, the limits and the faults are those of the other formats."""

from __future__ import annotations

import io
import sys

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401  registers itself with Pillow
import pytest
from PIL import Image

from captionlib.images import jpeg_xl
from captionlib.images.decode import ImageDecodeError, decode_image
from captionlib.images.formats import IMAGE_ENDINGS, find_format

pillow_heif.register_heif_opener()

ORIENTATION = 0x0112
FORMATS = ("HEIF", "JPEG2000", "JXL")


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Red above, blue below, with a white corner at the upper left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (220, 20, 20)
    pixels[height // 2 :] = (20, 20, 220)
    pixels[: height // 4, : width // 4] = 250
    return Image.fromarray(pixels)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def distance(image: Image.Image, expected: Image.Image) -> float:
    assert image.mode == "RGB"
    assert image.size == expected.size
    return float(np.abs(np.asarray(image, np.int16) - np.asarray(expected, np.int16)).mean())


def error_kind(data: bytes, **options: int) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data, **options)
    return caught.value.kind


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_image_comes_back(name, mode):
    image = picture().convert(mode)
    decoded = decode_image(encode(image, name))
    assert (decoded.width, decoded.height) == (96, 64)
    assert distance(decoded.image, image.convert("RGB")) < 4


@pytest.mark.parametrize("name", FORMATS)
def test_transparency_becomes_white(name):
    image = picture().convert("RGBA")
    image.putalpha(0)
    assert distance(decode_image(encode(image, name)).image, Image.new("RGB", image.size, "white")) < 2


def test_exif_of_files_whose_decoder_turns_them():
    """HEIC is turned by its own `irot`, and EXIF says the same again; JPEG XL must not obey EXIF (ISO 18181-2)."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    decoded = decode_image(encode(picture(), "HEIF", exif=exif.tobytes()))
    assert (decoded.width, decoded.height) == (64, 96)
    assert distance(decoded.image, picture().transpose(Image.Transpose.ROTATE_270)) < 4
    decoded = decode_image(encode(picture(), "JXL", exif=exif.tobytes()))
    assert distance(decoded.image, picture()) < 4


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(name, share):
    data = encode(picture(640, 480), name, **({"use_container": True} if name == "JXL" else {}))
    assert error_kind(data[: int(share * len(data))]) == "TruncatedImage"


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_one_error(name):
    whole = encode(picture(), name)
    generator = np.random.default_rng(0)
    kinds = set()
    for _ in range(40):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 12):
            data[place] = generator.integers(0, 256)
        try:
            decode_image(bytes(data), max_pixels=100_000)
        except ImageDecodeError as error:
            kinds.add(error.kind)
    assert kinds <= {"CorruptImage", "TruncatedImage", "UnsupportedImage", "ImageTooLarge", "NotAnImage"}
    assert kinds


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_of_pixels(name):
    data = encode(picture(), name)
    assert decode_image(data, max_pixels=96 * 64).width == 96
    assert error_kind(data, max_pixels=96 * 64 - 1) == "ImageTooLarge"


def test_a_jpeg_2000_is_reduced_while_it_is_decoded():
    data = encode(picture(1024, 768), "JPEG2000")
    decoded = decode_image(data, target_side=100)
    assert (decoded.image.size, decoded.width, decoded.height) == ((256, 192), 1024, 768)
    assert distance(decoded.image, picture(256, 192)) < 4
    assert decode_image(data, target_side=100, max_pixels=100_000).image.size == (256, 192)
    assert error_kind(data, target_side=100, max_pixels=30_000) == "ImageTooLarge"
    shallow = encode(picture(1024, 768), "JPEG2000", num_resolutions=2)
    assert decode_image(shallow, target_side=100).image.size == (512, 384)


@pytest.mark.parametrize("width", [1, 8, 63, 64, 256, 513, 1000])
@pytest.mark.parametrize("height", [1, 8, 64, 100, 513])
@pytest.mark.parametrize("use_container", [False, True])
def test_the_size_of_a_jpeg_xl_is_read_before_its_pixels(width, height, use_container):
    data = encode(Image.new("L", (width, height)), "JXL", use_container=use_container, effort=1)
    assert jpeg_xl.size(data) == (width, height)


def test_a_jpeg_xl_made_from_a_jpeg_keeps_its_turn(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture().save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        data = encode(image, "JXL", lossless_jpeg=True)
    decoded = decode_image(data)
    assert (decoded.width, decoded.height) == (64, 96)
    assert distance(decoded.image, picture().transpose(Image.Transpose.ROTATE_270)) < 4


@pytest.mark.parametrize(("name", "library"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl.JpegXLImagePlugin")])
def test_a_library_that_is_missing_is_named(monkeypatch, name, library):
    data = encode(picture(), name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImageDecodeError, match=r"UnsupportedImage: .* pip install 'captionlib\[formats\]'"):
        decode_image(data)


def test_endings_are_of_one_format_each():
    assert len(set(IMAGE_ENDINGS)) == len(IMAGE_ENDINGS)
    assert {".jfif", ".jpe", ".heic", ".heics", ".jp2", ".jxl", ".avif"} <= set(IMAGE_ENDINGS)
    found = find_format(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")
    assert found is not None
    assert found.name == "AVIF"


def test_a_tiff_with_reduced_copies_is_decoded_from_the_right_one():
    """Pyramids, as archives have them: pages with the tag NewSubfileType 1 are copies of the first."""
    file = io.BytesIO()
    whole, half, quarter = picture(1024, 768), picture(512, 384), picture(256, 192)
    other = Image.new("RGB", (300, 300), "green")  # a page of its own
    for page, is_copy in ((whole, 0), (other, 0), (half, 1), (quarter, 1)):
        page.encoderinfo = {"tiffinfo": {254: is_copy}}
    whole.save(file, "TIFF", save_all=True, append_images=[other, half, quarter], tiffinfo={254: 0})
    data = file.getvalue()
    decoded = decode_image(data, target_side=100)
    assert (decoded.image.size, decoded.width, decoded.height) == ((256, 192), 1024, 768)
    assert distance(decoded.image, quarter) < 2
    assert decode_image(data, target_side=300).image.size == (512, 384)
    assert decode_image(data, target_side=700).image.size == (1024, 768)
    assert decode_image(data, target_side=100, max_pixels=60_000).width == 1024
    assert error_kind(data, max_pixels=60_000) == "ImageTooLarge"
