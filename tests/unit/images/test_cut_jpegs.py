"""JPEG files whose end is missing: complete enough, or truncated."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionlib.images.cut_jpegs import END_MARKER, MAX_MISSING
from captionlib.images.decode import ImageDecodeError, decode_image
from captionlib.images.decode_pixels import decode_pixels

PHOTOS = Path(__file__).parents[2] / "photos"
VARIANTS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 2},
    "sampled": {"subsampling": 0},
    "optimized": {"optimize": True, "quality": 40},
}


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def photo(mode: str = "RGB") -> Image.Image:
    with Image.open(PHOTOS / "coffee.jpg") as image:
        return image.convert(mode)


def outcome(data: bytes, **options: int) -> str:
    """The kind of error, or "" for an image; the same by the fast decoder and by Pillow."""
    kinds = []
    for decode in (decode_image, decode_pixels):
        try:
            decode(data, **options)
            kinds.append("")
        except ImageDecodeError as error:
            kinds.append(error.kind)
    assert kinds[0] == kinds[1]
    return kinds[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("target_side", [None, 60])
def test_without_its_end_marker_a_file_is_complete(variant, mode, target_side):
    whole = jpeg(photo(mode), **VARIANTS[variant])
    assert whole.endswith(END_MARKER)
    for data in (whole[:-1], whole[:-2], whole[:-2] + b"\xff\xff"):
        assert outcome(data, target_side=target_side) == ""
        expected = decode_image(whole, target_side=target_side).image
        made = np.asarray(decode_image(data, target_side=target_side).image)
        np.testing.assert_array_equal(made[:-16], np.asarray(expected)[:-16])


@pytest.mark.parametrize("closing", [b"", END_MARKER, END_MARKER + bytes(10)], ids=["open", "closed", "padded"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("share", [0.15, 0.5, 0.8])
def test_cut_in_the_middle_a_file_is_truncated(variant, mode, share, closing):
    whole = jpeg(photo(mode), **VARIANTS[variant])
    # A progressive file has the whole image early, and then refines it: it is cut in its first scan.
    end = whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2) if variant == "progressive" else len(whole)
    start = whole.index(b"\xff\xda") + 20
    data = whole[: start + int(share * (end - start))] + closing
    assert outcome(data) == "TruncatedImage"
    assert outcome(data, target_side=100) == "TruncatedImage"
    assert outcome(data, target_side=30) == "TruncatedImage"


def test_the_limit_is_of_rows():
    """Rows of blocks of equal length, so that what a cut takes away is known."""
    generator = np.random.default_rng(0)
    rows = 100
    image = Image.fromarray(generator.integers(0, 256, (8 * rows, 64), np.uint8))
    whole = jpeg(image, restart_marker_rows=1)
    marks = [i for i in range(len(whole) - 1) if whole[i] == 0xFF and 0xD0 <= whole[i + 1] <= 0xD7]
    assert len(marks) == rows - 1
    for missing in (1, 2, 3, 10, 50):
        data = whole[: marks[-missing]] + END_MARKER
        assert outcome(data) == ("" if missing / rows <= MAX_MISSING else "TruncatedImage"), missing


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_an_image_that_is_grey_at_its_lower_end_is_complete(options):
    image = photo()
    image.paste((128, 128, 128), (0, image.height // 2, image.width, image.height))
    for picture in (image, Image.new("RGB", (50, 50), (128, 128, 128)), Image.new("L", (9, 9), 128)):
        whole = jpeg(picture, **options)
        assert outcome(whole) == ""
        assert outcome(whole, target_side=10) == ""
        assert outcome(whole[:-2]) == ""


def test_a_refining_scan_that_is_missing_does_not_matter():
    whole = jpeg(photo(), progressive=True)
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff\xda", first + 2)
    assert outcome(whole[:second] + END_MARKER) == ""
