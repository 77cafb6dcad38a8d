"""The fast path for JPEG files: which files take it, and that its pixels and errors are those of Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionlib.config import Preprocessing
from captionlib.images.decode import MAX_PIXELS, ImageDecodeError, decode_image
from captionlib.images.decode_pixels import decode_pixels
from captionlib.images.pixels import to_pixels
from captionlib.images.plain_jpegs import decode_plain_jpeg
from tests.mutations import mutate, originals

PHOTO = Image.open(Path(__file__).parents[2] / "photos" / "cat.jpg").convert("RGB")
ORIENTATION = 0x0112


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def outcome(decode: object, data: bytes, **options: int | None) -> object:
    try:
        found = decode(data, **options)  # type: ignore[operator]
    except ImageDecodeError as error:
        return error.kind
    pixels = found.pixels if hasattr(found, "pixels") else np.asarray(found.image)
    return found.width, found.height, pixels.shape, pixels.tobytes()


PLAIN = {
    "rgb": jpeg(PHOTO),
    "every chroma sample": jpeg(PHOTO, subsampling=0),
    "progressive": jpeg(PHOTO, progressive=True),
    "grey": jpeg(PHOTO.convert("L")),
    "restart markers": jpeg(PHOTO, restart_marker_rows=1),
    "exif, upright": jpeg(PHOTO, exif=turned(1)),
    "comment": jpeg(PHOTO, comment=b"a cat"),
    "odd size": jpeg(PHOTO.resize((133, 77))),
    "one column": jpeg(PHOTO.resize((1, 90))),
    "one row": jpeg(PHOTO.resize((90, 1))),
    "one pixel": jpeg(PHOTO.resize((1, 1))),
    "kept as rgb": jpeg(PHOTO, keep_rgb=True),
    "bytes after the end": jpeg(PHOTO) + b"more",
}
NOT_PLAIN = {
    "turned": jpeg(PHOTO, exif=turned(6)),
    "mirrored": jpeg(PHOTO, exif=turned(2)),
    "cmyk": jpeg(PHOTO.convert("CMYK")),
    "truncated": jpeg(PHOTO)[:-2000],
    "truncated, progressive": jpeg(PHOTO, progressive=True)[:-2000],
    "header alone": jpeg(PHOTO)[:300],
    "bytes between two markers": jpeg(PHOTO)[:2] + b"\0\0\0" + jpeg(PHOTO)[2:],
    "two frames": jpeg(PHOTO).replace(b"\xff\xc0", b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00\xff\xc0"),
    "no jpeg": b"\x89PNG\r\n\x1a\n",
    "no bytes": b"",
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parity
def test_plain_files_have_the_pixels_of_pillow(name: str) -> None:
    pixels = decode_plain_jpeg(PLAIN[name], None, MAX_PIXELS)
    assert pixels is not None, "it did not take the fast path"
    assert pixels.flags.c_contiguous
    expected = np.asarray(decode_image(PLAIN[name]).image)
    assert np.abs(pixels.astype(int) - expected).mean() < 0.1
    assert pixels.shape == expected.shape


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_other_files_are_left_to_pillow(name: str) -> None:
    assert decode_plain_jpeg(NOT_PLAIN[name], None, MAX_PIXELS) is None
    assert outcome(decode_pixels, NOT_PLAIN[name]) == outcome(decode_image, NOT_PLAIN[name])


def test_a_picture_to_be_reduced_is_left_to_pillow() -> None:
    data = jpeg(PHOTO.resize((400, 200)))
    assert decode_plain_jpeg(data, 100, MAX_PIXELS) is None
    assert decode_pixels(data, target_side=100).pixels.shape == (100, 200, 3)
    assert decode_plain_jpeg(data, 101, MAX_PIXELS) is not None


def test_the_limit_of_pixels_holds() -> None:
    data = jpeg(PHOTO.resize((100, 50)))
    assert decode_plain_jpeg(data, None, 4999) is None
    assert outcome(decode_pixels, data, max_pixels=4999) == "ImageTooLarge"
    assert decode_plain_jpeg(data, None, 5000) is not None


def test_damaged_files_end_as_with_pillow() -> None:
    files = [data for format_name, data in originals() if format_name == "JPEG"] + [PLAIN["odd size"], PLAIN["grey"]]
    generator = np.random.default_rng(0)
    fast = 0
    for index in range(600):
        data = mutate(files[index % len(files)], files[generator.integers(len(files))], generator)
        target_side = [None, 16][index % 2]
        fast += decode_plain_jpeg(data, target_side, MAX_PIXELS) is not None
        expected, found = (
            outcome(decode_image, data, target_side=target_side),
            outcome(decode_pixels, data, target_side=target_side),
        )
        # Pixels behind the damage may differ between two versions of libjpeg-turbo; size and kind of error may not.
        assert (
            (found if isinstance(found, str) else found[:3])  # type: ignore[index]
            == (
                expected if isinstance(expected, str) else expected[:3]  # type: ignore[index]
            )
        )
    assert fast > 20


# ---- the resize ----


def by_pillow(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, None, 3.0))


@pytest.mark.parity
@pytest.mark.parametrize(
    "shape", [(640, 427), (427, 640), (301, 299), (100, 80), (37, 500), (1, 1), (1, 300), (2000, 1500)]
)
def test_the_resize_is_that_of_pillow(shape: tuple[int, int]) -> None:
    image = PHOTO.resize(shape)
    difference = np.abs(to_pixels(image, Preprocessing(size=288)).astype(int) - by_pillow(image, 288))
    assert difference.mean() < 0.2  # of this sharp picture; of photos at their own size it is under 0.1
    assert difference.max() < 16  # where an overshoot is cut off between the two passes


def test_arrays_and_pictures_give_the_same_pixels() -> None:
    for square in ("squash", "center_crop", "pad"):
        preprocessing = Preprocessing(size=96, square=square)
        assert np.array_equal(to_pixels(PHOTO, preprocessing), to_pixels(np.asarray(PHOTO), preprocessing))


def test_pixels_of_the_right_size_are_copied() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    pixels = to_pixels(picture, Preprocessing(size=8))
    pixels[:] = 255
    assert picture.max() == 0


@pytest.mark.parametrize("picture", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_arrays_of_another_form_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be uint8 of shape \(H, W, 3\)"):
        to_pixels(picture, Preprocessing(size=8))
