"""JPEGs for a GPU: which files are let through, and the pixels that come out. The device here is the CPU, which does
the same by another library."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torchvision.io
from PIL import Image
from torch import Tensor

from captionlib import jpegs
from captionlib.config import Preprocessing, SquareMode
from captionlib.images import ImageDecodeError, decode_image
from captionlib.jpegs import JpegDecoder, PlainJpeg, plain_jpeg
from captionlib.transforms import to_pixels

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
PHOTO = PHOTOS[0].read_bytes()


def written(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(data: bytes) -> PlainJpeg:
    found = plain_jpeg(data)
    assert found is not None
    return found


# ---- which files ----


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.stem)
def test_photos_are_plain(path: Path) -> None:
    found = plain(path.read_bytes())
    assert (found.width, found.height) == Image.open(path).size


def test_grey_progressive_and_padded_files_are_plain() -> None:
    grey = Image.new("L", (30, 20), 77)
    for data in (written(grey), written(grey.convert("RGB"), progressive=True), written(grey) + b"\0\0"):
        found = plain(data)
        assert (found.width, found.height) == (30, 20)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return written(Image.new("RGB", (30, 20)), exif=exif)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        written(Image.new("RGB", (30, 20)), "PNG"),
        written(Image.new("CMYK", (30, 20))),
        written(Image.new("RGB", (30, 20)), keep_rgb=True),
        turned(),
        PHOTO[: len(PHOTO) // 2],
        PHOTO[:3] + PHOTO[-2:],
    ],
    ids=["empty", "text", "PNG", "CMYK", "RGB", "turned", "cut", "no header"],
)
def test_other_files_are_not(data: bytes) -> None:
    assert plain_jpeg(data) is None


def test_a_picture_beyond_the_limit_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(Image.new("RGB", (30, 20)))
    monkeypatch.setattr(jpegs, "MAX_PIXELS", 30 * 20 - 1)
    assert plain_jpeg(data) is None
    monkeypatch.setattr(jpegs, "MAX_PIXELS", 30 * 20)
    assert plain_jpeg(data) is not None


# ---- their pixels ----


@pytest.mark.parametrize("square", ["squash", "center_crop", "pad"])
def test_pixels_are_those_of_the_cpu(square: SquareMode) -> None:
    preprocessing = Preprocessing(size=96, square=square, mean=(10.4, 20.0, 30.0))
    found = JpegDecoder(preprocessing, "cpu")([plain(path.read_bytes()) for path in PHOTOS])
    assert len(found) == len(PHOTOS)
    for pixels, path in zip(found, PHOTOS, strict=True):
        assert isinstance(pixels, np.ndarray)
        assert pixels.dtype == np.uint8
        expected = to_pixels(decode_image(path.read_bytes()).image, preprocessing)
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.mean() < 1
        assert np.quantile(difference, 0.99) <= 6


def test_pictures_that_are_many_pixels_together_are_decoded_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = spy(monkeypatch)
    monkeypatch.setattr(jpegs, "MAX_PIXELS_AT_ONCE", 500)
    files = [plain(written(Image.new("RGB", (size, size), (size, 0, 0)))) for size in (16, 15, 5, 30, 4)]
    found = JpegDecoder(Preprocessing(size=8), "cpu")(files)
    assert turns == [2, 1, 1, 1]  # 256 + 225, 25, 900, 16
    assert [int(np.asarray(pixels)[4, 4, 0]) for pixels in found] == pytest.approx([16, 15, 5, 30, 4], abs=2)


def spy(monkeypatch: pytest.MonkeyPatch, refused: Callable[[Tensor], bool] = lambda file: False) -> list[int]:
    """How many files were decoded each time; `refused` ones make it fail, as a GPU does."""
    turns: list[int] = []
    real = torchvision.io.decode_jpeg

    def decode(files: Sequence[Tensor], *options: object) -> list[Tensor]:
        turns.append(len(files))
        if any(map(refused, files)):
            raise RuntimeError("nvjpegDecode failed: 5")
        return real(files, *options)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode)
    return turns


def test_what_the_device_refuses_the_cpu_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    reds = [10, 20, 30, 40, 50, 60, 70]
    files = [plain(written(Image.new("RGB", (20, 20), (red, 0, 0)))) for red in reds]
    turns = spy(monkeypatch, lambda file: bytes(file.numpy()) == files[4].data)
    found = JpegDecoder(Preprocessing(size=8), "cpu")(files)
    assert turns == [7, 3, 4, 2, 1, 1, 2]  # halves of what is refused, until it is one file
    assert [int(np.asarray(pixels)[4, 4, 0]) for pixels in found] == pytest.approx(reds, abs=2)


def test_a_damaged_file_has_the_cpus_words_and_spoils_no_other() -> None:
    # Without its quantization tables there is no picture.
    damaged = re.sub(rb"\xff\xdb", b"\xff\xe5", PHOTO)
    whole, broken = JpegDecoder(Preprocessing(size=8), "cpu")([plain(PHOTO), plain(damaged)])
    assert isinstance(whole, np.ndarray)
    assert isinstance(broken, ImageDecodeError)
    with pytest.raises(ImageDecodeError) as expected:
        decode_image(damaged)
    assert str(broken) == str(expected.value)
    assert broken.kind == "CorruptImage"


def test_no_files_no_pixels() -> None:
    assert JpegDecoder(Preprocessing(size=8), "cpu")([]) == []


def test_a_device_that_does_not_decode_is_told_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = JpegDecoder(Preprocessing(size=8), "cpu")
    decoder.check()
    spy(monkeypatch, lambda file: True)
    with pytest.raises(ValueError, match="cannot be decoded on cpu here: nvjpegDecode failed: 5"):
        decoder.check()
