"""Small files that are made to need much time or memory: each is decoded in little of both, or is a known error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from captionlib.images.decode import ImageDecodeError, decode_image
from captionlib.images.decode_pixels import decode_pixels
from captionlib.images.jpeg_segments import FEW_SCANS, MAX_EXIF_SEGMENTS, MAX_SCANS, max_scans, num_scans
from captionlib.images.transforms import MaxSide, ResizeAndCrop
from tests.mutations.parsers import parse

GREY = Image.new("L", (64, 64), 77)
ORIENTATION = 0x0112


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def error(decode: object, data: bytes, **options: int) -> ImageDecodeError:
    with pytest.raises(ImageDecodeError) as caught:
        decode(data, **options)  # type: ignore[operator]
    return caught.value


# ---- JPEG ----


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has `count`."""
    file = parse(encode(GREY, "JPEG", progressive=True))
    assert file.parts is not None
    scans = [part for part in file.parts if part.kind == "scan"]
    place = file.parts.index(scans[-1])
    file.parts[place:place] = [scans[-1]] * (count - len(scans))
    return file.to_bytes(mend=False)


@pytest.mark.parametrize("decode", [decode_image, decode_pixels])
def test_a_jpeg_has_a_limited_number_of_scans(decode):
    assert decode(with_scans(MAX_SCANS)).width == 64
    fault = error(decode, with_scans(MAX_SCANS + 1))
    assert str(fault) == "ImageTooLarge: JPEG: 501 scans of 64 × 64 pixels, 500 is the limit at this size"
    # The larger an image is, the fewer scans it may have.
    assert decode(with_scans(100), max_pixels=64 * 64).width == 64
    assert error(decode, with_scans(101), max_pixels=64 * 64).kind == "ImageTooLarge"


def test_scans_are_counted_by_their_markers():
    assert num_scans(with_scans(70)) == 70
    data = with_scans(10)
    assert num_scans(data + b"\xff\xda" * 1000) == 10  # of a video behind the image
    # Neither a comment that contains markers, nor one that contains the end marker, changes the number.
    for content in (b"\xff\xda" * 100, b"\xff\xd9"):
        comment = b"\xff\xfe" + struct.pack(">H", len(content) + 2) + content
        place = data.rindex(b"\xff\xc4")
        assert num_scans(data[:place] + comment + data[place:]) == 10


def test_larger_images_may_have_fewer_scans():
    assert max_scans(1, 1000) == max_scans(200, 1000) == MAX_SCANS
    assert max_scans(500, 1000) == 200
    assert max_scans(1000, 1000) == 100
    assert max_scans(10**6, 1000) == FEW_SCANS


def test_a_video_behind_a_photo_does_not_count_as_scans():
    data = encode(GREY, "JPEG") + b"\xff\xda" * 1000
    assert decode_pixels(data).width == 64


def test_exif_data_in_very_many_segments_are_dropped():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photo = encode(Image.new("RGB", (32, 64), "red"), "JPEG", exif=exif)
    segment = b"\xff\xe1" + struct.pack(">H", 60_000 + 2) + b"Exif\0\0" + bytes(60_000 - 6)
    place = photo.index(b"\xff\xdb")
    data = photo[:place] + segment * (MAX_EXIF_SEGMENTS + 200) + photo[place:]
    decoded = decode_image(data)
    assert (decoded.width, decoded.height) == (64, 32)  # the first segment counts
    assert decode_pixels(data).pixels.shape == (32, 64, 3)


# ---- PNG ----


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_metadata_that_unpack_to_very_much_are_an_error(name):
    png = encode(GREY, "PNG")
    bomb = chunk(name, b"a\0\0" + zlib.compress(bytes(10**8), 9))
    fault = error(decode_image, png[:33] + bomb + png[33:])
    assert (fault.kind, "too large" in fault.message) == ("CorruptImage", True)


def test_very_many_text_chunks_are_an_error():
    png = encode(GREY, "PNG")
    texts = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000), 9)) * 100
    fault = error(decode_image, png[:33] + texts + png[33:])
    assert (fault.kind, "Too much memory" in fault.message) == ("CorruptImage", True)


# ---- animations: only the first frame is decoded ----


def test_a_gif_of_very_many_frames():
    gif = encode(GREY, "GIF")
    frame = gif[gif.rindex(b",") : -1]
    assert decode_image(gif[:-1] + frame * 200_000 + b";").width == 64


def test_a_webp_of_very_many_frames():
    webp = encode(GREY, "WEBP", save_all=True, append_images=[Image.new("L", (64, 64), 0)])
    place = webp.index(b"ANMF")
    (size,) = struct.unpack_from("<I", webp, place + 4)
    body = webp[8:place] + webp[place : place + 8 + size] * 50_000
    assert decode_image(b"RIFF" + struct.pack("<I", len(body)) + body).width == 64


def test_a_png_of_very_many_frames():
    png = encode(GREY, "PNG")
    control = struct.pack(">IIIIHHBB", 64, 64, 0, 0, 1, 10, 0, 0)
    frame = [
        chunk(b"fcTL", struct.pack(">I", 2 * i + 1) + control) + chunk(b"fdAT", struct.pack(">I", 2 * i + 2) + b"x")
        for i in range(20_000)
    ]
    start = png[:33] + chunk(b"acTL", struct.pack(">II", 20_001, 0)) + chunk(b"fcTL", bytes(4) + control)
    assert decode_image(start + png[33:-12] + b"".join(frame) + png[-12:]).width == 64


# ---- TIFF ----


def with_directories(next_directory: list[bytes]) -> bytes:
    """A TIFF of 64 × 64 pixels, followed by the directories, each of which gets the place of the next."""
    tiff = bytearray(encode(GREY, "TIFF"))
    (first,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, first)
    link = first + 2 + 12 * count
    for directory in next_directory:
        struct.pack_into("<I", tiff, link, len(tiff))
        tiff += directory
        link = len(tiff)
        tiff += bytes(4)
    return bytes(tiff)


def directory(*entries: tuple[int, int]) -> bytes:
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<H", len(entries)) + fields


TINY = directory((256, 8), (257, 8), (258, 8), (262, 1), (273, 8), (279, 64))


def test_pages_are_not_counted(monkeypatch):
    from PIL.TiffImagePlugin import TiffImageFile

    seeks: list[int] = []
    seek = TiffImageFile._seek

    def counted(self: TiffImageFile, page: int) -> None:
        seeks.append(page)
        seek(self, page)

    monkeypatch.setattr(TiffImageFile, "_seek", counted)
    assert decode_image(with_directories([TINY] * 20_000), target_side=16).width == 64
    assert len(seeks) < 100


def test_pages_in_a_circle():
    data = bytearray(with_directories([TINY] * 3))
    (first,) = struct.unpack_from("<I", data, 4)
    data[-4:] = struct.pack("<I", first)
    assert decode_image(bytes(data), target_side=16).width == 64


@pytest.mark.parametrize("damage", [directory(), directory((256, 2**31), (257, 2**31)), b"\xff\xff"])
def test_a_damaged_page_does_not_matter_to_the_first(damage):
    decoded = decode_image(with_directories([TINY, damage]), target_side=16)
    assert decoded.image.getpixel((9, 9)) == (77, 77, 77)


def test_a_reduced_copy_before_a_damaged_page_is_found():
    half = directory((254, 1), (256, 32), (257, 32), (258, 8), (262, 1), (273, 8), (278, 32), (279, 1024))
    assert decode_image(with_directories([half, directory()]), target_side=16).image.size == (32, 32)


def test_very_many_strips():
    rows = 100_000
    image = Image.new("L", (8, rows), 77)
    data = encode(image, "TIFF", tiffinfo={278: 1})
    assert decode_image(data).height == rows


# ---- very long images ----


def test_a_very_long_image_is_not_scaled_to_gigabytes():
    long = encode(Image.new("1", (60_000, 1)), "PNG")
    crop = ResizeAndCrop(side=224, height=None, width=224, interpolation="bicubic")  # to 13,440,000 × 224
    fault = error(crop, long)
    assert fault.kind == "ImageTooLarge"
    assert "60000 × 1 pixels, which this model needs scaled to 13440000 × 224" in fault.message
    assert MaxSide(64)(long).pixels.shape == (1, 64, 3)
    wide = encode(Image.fromarray(np.zeros((10, 2000), np.uint8)), "PNG")
    assert crop(wide).pixels.shape == (224, 224, 3)
