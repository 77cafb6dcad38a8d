"""Pixels: squares worked out by hand, parity with torchvision, and what augmentation may and may not do."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as torchvision_v2

from captionlib.config import Preprocessing, SquareMode
from captionlib.images.decode import decode_image
from captionlib.images.pixels import augment, blank_pixels, normalize, to_pixels

PHOTOS = Path(__file__).parents[2] / "photos"
SQUARES: list[SquareMode] = ["squash", "center_crop", "pad"]


def stripes(width: int, height: int) -> Image.Image:
    """Left third red, middle green, right blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 3, 0] = 255
    pixels[:, width // 3 : 2 * width // 3, 1] = 255
    pixels[:, 2 * width // 3 :, 2] = 255
    return Image.fromarray(pixels)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y, over [0, 255]."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 99)], axis=-1).round().astype(np.uint8))


# ---- squares, worked by hand ----


def test_squash_shows_everything() -> None:
    pixels = to_pixels(stripes(90, 30), Preprocessing(size=9, square="squash"))
    assert pixels[4].argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("upright", [True, False])
def test_center_crop_shows_the_middle(upright: bool) -> None:
    image = stripes(90, 30)
    if upright:
        image = image.transpose(Image.Transpose.ROTATE_90)
    pixels = to_pixels(image, Preprocessing(size=8, square="center_crop"))
    assert (pixels.argmax(axis=2) == 1).all()
    assert (pixels[3:5, 3:5] == [0, 255, 0]).all()


def test_pad_shows_everything_between_bars_of_the_mean_colour() -> None:
    preprocessing = Preprocessing(size=9, square="pad", mean=(10.4, 20.0, 30.0))
    pixels = to_pixels(stripes(90, 30), preprocessing)
    assert (pixels[:3] == [10, 20, 30]).all()
    assert (pixels[6:] == [10, 20, 30]).all()
    assert pixels[4].argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2), (7, 5), (224, 224), (641, 480)])
def test_every_shape_becomes_a_square(square: SquareMode, size: tuple[int, int]) -> None:
    pixels = to_pixels(Image.new("RGB", size, (9, 99, 199)), Preprocessing(size=32, square=square))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert (pixels == [9, 99, 199]).all(axis=2).any()


def test_image_of_the_right_size_passes_unchanged() -> None:
    image = ramp(50, 50)
    for square in SQUARES:
        assert (to_pixels(image, Preprocessing(size=50, square=square)) == np.asarray(image)).all()


def test_reduction_averages_instead_of_picking() -> None:
    checkerboard = np.indices((256, 256)).sum(axis=0) % 2 * 255
    image = Image.fromarray(checkerboard.astype(np.uint8)).convert("RGB")
    pixels = to_pixels(image, Preprocessing(size=32)).astype(int)
    assert np.abs(pixels - 127.5).max() < 3


def test_grey_image_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="mode RGB, got L"):
        to_pixels(Image.new("L", (5, 5)), Preprocessing())


def test_blank_pixels() -> None:
    blank = blank_pixels(Preprocessing(size=12))
    assert blank.shape == (12, 12, 3)
    assert blank.dtype == np.uint8
    assert blank.max() == 0


# ---- parity ----


def noise(height: int, width: int) -> np.ndarray:
    """Of middling values: bicubic overshoot of extreme ones is clipped by Pillow between its two passes."""
    return np.random.default_rng(0).integers(80, 176, (height, width, 3), dtype=np.uint8)


def torchvision_resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1).float()
    resized = torchvision_v2.functional.resize(
        channels_first, [height, width], InterpolationMode.BICUBIC, antialias=True
    )
    return resized.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("shape", [(480, 640), (640, 427), (300, 451), (100, 80)])
def test_squash_equals_torchvision(shape: tuple[int, int]) -> None:
    pixels = to_pixels(Image.fromarray(noise(*shape)), Preprocessing(size=224))
    assert np.abs(pixels - torchvision_resize(noise(*shape), 224, 224)).max() < 1.6  # two roundings and a half


def test_center_crop_equals_torchvision() -> None:
    resized = torchvision_resize(noise(448, 672), 224, 336)
    pixels = to_pixels(Image.fromarray(noise(448, 672)), Preprocessing(size=224, square="center_crop"))
    assert np.abs(pixels - resized[:, 56:-56]).max() < 1.6


def test_large_reduction_is_close_to_torchvision() -> None:
    large = np.array(Image.open(PHOTOS / "cat.jpg").resize((2000, 1600), Image.Resampling.BICUBIC))
    pixels = to_pixels(Image.fromarray(large), Preprocessing(size=64))
    assert np.abs(pixels - torchvision_resize(large, 64, 64)).mean() < 0.5


def test_reduced_decoding_hardly_changes_the_pixels() -> None:
    file = io.BytesIO()
    Image.open(PHOTOS / "coffee.jpg").resize((1200, 800), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    full = to_pixels(decode_image(file.getvalue()).image, Preprocessing())
    reduced_image = decode_image(file.getvalue(), target_side=224).image
    assert reduced_image.size == (600, 400)
    assert np.abs(to_pixels(reduced_image, Preprocessing()).astype(int) - full).mean() < 1


# ---- normalization ----


def test_normalize_by_hand() -> None:
    preprocessing = Preprocessing(size=1, mean=(0.0, 100.0, 127.0), std=(1.0, 2.0, 128.0))
    pixels = torch.tensor([[[[3, 110, 255]]], [[[0, 0, 0]]]], dtype=torch.uint8)
    normalized = normalize(pixels, preprocessing)
    assert normalized.dtype == torch.float32
    assert normalized.shape == (2, 3, 1, 1)
    assert normalized.flatten().tolist() == [3, 5, 1, 0, -50, -127 / 128]


def test_normalize_equals_torchvision_and_lies_channels_last() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
    before = pixels.clone()
    mean, std = (124.0, 116.0, 104.0), (58.0, 57.0, 57.4)
    normalized = normalize(pixels, Preprocessing(mean=mean, std=std))
    expected = torchvision_v2.functional.normalize(pixels.permute(0, 3, 1, 2).float(), list(mean), list(std))
    torch.testing.assert_close(normalized, expected)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3).byte(), torch.zeros(2, 3, 8, 8).byte()],
    ids=["float", "one image", "channels first"],
)
def test_normalize_refuses_other_layouts(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 of shape \(B, S, S, 3\)"):
        normalize(pixels, Preprocessing())


# ---- augmentation ----


@pytest.mark.parametrize("square", SQUARES)
def test_augment_repeats_under_a_seed_and_varies_otherwise(square: SquareMode) -> None:
    image, preprocessing = ramp(60, 40), Preprocessing(size=24, square=square)

    def run(seed: int) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        return [augment(image, preprocessing, generator) for _ in range(3)]

    for again, first in zip(run(1), run(1), strict=True):
        assert (again == first).all()
    first, second, third = run(1)
    assert (first != second).any()
    assert (second != third).any()
    assert (first != run(2)[0]).any()


@pytest.mark.parametrize("square", ["squash", "center_crop"])
def test_augment_crops_within_its_limits(square: SquareMode) -> None:
    # On the ramp, a pixel's colour says where it comes from: the range of red is the width of the crop.
    width, height = 300, 200
    generator = np.random.default_rng(0)
    flips, areas, stretches = 0, [], []
    for _ in range(400):
        pixels = augment(ramp(width, height), Preprocessing(size=100, square=square), generator).astype(float)
        red, green = pixels[:, :, 0].mean(axis=0), pixels[:, :, 1].mean(axis=1)
        flips += red[0] > red[-1]
        shown_width = {"squash": width, "center_crop": height}[square]
        crop_width = abs(red[-1] - red[0]) / 255 * width / shown_width
        crop_height = (green[-1] - green[0]) / 255
        areas.append(crop_width * crop_height)
        stretches.append(crop_width / crop_height)
    assert 150 < flips < 250
    assert 0.47 < min(areas) < 0.56
    assert 0.93 < max(areas) < 1.01
    assert 0.72 < min(stretches) < 0.8
    assert 1.25 < max(stretches) < 1.37


def test_augment_without_freedom_is_to_pixels_or_its_mirror() -> None:
    image, preprocessing = ramp(60, 40), Preprocessing(size=24)
    plain = to_pixels(image, preprocessing)
    generator = np.random.default_rng(0)
    mirrored = 0
    for _ in range(20):
        pixels = augment(image, preprocessing, generator, min_area=1)
        is_mirror = bool((pixels == plain[:, ::-1]).all())
        assert is_mirror or (pixels == plain).all()
        mirrored += is_mirror
    assert 0 < mirrored < 20


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (500, 3), (13, 11)])
def test_augment_fits_every_shape(square: SquareMode, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        pixels = augment(Image.new("RGB", size), Preprocessing(size=16, square=square), generator)
        assert pixels.shape == (16, 16, 3)
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "options", [{"min_area": 0.0}, {"min_area": 1.1}, {"max_stretch": 0.5}, {"min_area": math.nan}]
)
def test_augment_checks_its_settings(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        augment(ramp(10, 10), Preprocessing(), np.random.default_rng(0), **options)
