"""Upright RGB image → square uint8 pixels → normalized float tensor: from `images.py` to the encoder.

The checkpoint's `Preprocessing` decides size, square mode and pixel statistics; nothing else does.

Shapes: B images, S side of the square input.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from captionlib.config import Preprocessing

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the image

# Bicubic with antialiasing. From 6-fold reduction on, Pillow first averages blocks of pixels and leaves at
# least a 3-fold reduction to the filter: fast for large pictures, and hardly to be told from the slow way.
_RESAMPLING = Image.Resampling.BICUBIC
_REDUCING_GAP = 3.0


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Scale an upright RGB image to the encoder's square, in one antialiased step.

    Returns:
        HWC uint8 (S, S, 3) in [0, 255], contiguous and writable.
    """
    width, height = image.size
    if preprocessing.square == "center_crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return _scale(image, (left, top, left + side, top + side), preprocessing)
    return _scale(image, (0, 0, width, height), preprocessing)


def augment(
    image: Image.Image,
    preprocessing: Preprocessing,
    generator: np.random.Generator,
    *,
    min_area: float = 0.5,
    max_stretch: float = 4 / 3,
) -> np.ndarray:
    """A random resized crop and a random horizontal flip, for training.

    After Szegedy et al. 2015, "Going deeper with convolutions", section 6, but of at least half of the image,
    so that what a caption names stays in sight. The same state of the generator gives the same pixels. Decode
    with a `target_side` of at least `size / sqrt(min_area)`, so that small crops are not enlarged.

    Args:
        image: upright RGB.
        min_area: the crop's smallest share of what `to_pixels` would show, in (0, 1].
        max_stretch: the crop is at most this many times wider or narrower than what `to_pixels` would show.

    Returns:
        HWC uint8 (S, S, 3) in [0, 255].
    """
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be in (0, 1], got {min_area}")
    if max_stretch < 1:
        raise ValueError(f"max_stretch must be at least 1, got {max_stretch}")
    width, height = image.size
    shown_width, shown_height = width, height
    if preprocessing.square == "center_crop":
        shown_width = shown_height = min(width, height)
    area = generator.uniform(min_area, 1)
    limit = min(math.log(max_stretch), abs(math.log(area)))  # beyond, the crop would not fit
    stretch = math.exp(generator.uniform(-limit, limit))
    crop_width = min(width, shown_width * math.sqrt(area * stretch))
    crop_height = min(height, shown_height * math.sqrt(area / stretch))
    left = generator.uniform(0, width - crop_width)
    top = generator.uniform(0, height - crop_height)
    box = (left, top, min(width, left + crop_width), min(height, top + crop_height))
    pixels = _scale(image, box, preprocessing)
    return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels


def normalize(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Pixels as the encoder wants them: (value - mean) / std for each channel.

    Args:
        pixels: uint8 (B, S, S, 3) in [0, 255], on any device.

    Returns:
        float32 (B, 3, S, S) in channels-last memory, on the same device.
    """
    import torch

    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(
            f"pixels must be uint8 of shape (B, S, S, 3), got {pixels.dtype} of shape {tuple(pixels.shape)}: "
            "make them with to_pixels"
        )
    mean = torch.tensor(preprocessing.mean, device=pixels.device)  # (3,)
    std = torch.tensor(preprocessing.std, device=pixels.device)  # (3,)
    # A contiguous (B, S, S, 3), seen as (B, 3, S, S), is channels-last as it lies: nothing is copied.
    return pixels.float().contiguous().sub_(mean).div_(std).permute(0, 3, 1, 2)  # (B, 3, S, S)


def blank_pixels(preprocessing: Preprocessing) -> np.ndarray:
    """Zeros uint8 (S, S, 3), to hold the place of an image that could not be decoded."""
    return np.zeros((preprocessing.size, preprocessing.size, 3), dtype=np.uint8)


def _scale(image: Image.Image, box: Box, preprocessing: Preprocessing) -> np.ndarray:
    """The part `box` of the image as uint8 (S, S, 3): stretched, or padded to a square."""
    if image.mode != "RGB":
        raise ValueError(f"image must have mode RGB, got {image.mode}: decode_image gives it, or image.convert")
    size = preprocessing.size
    if preprocessing.square != "pad":
        return np.array(image.resize((size, size), _RESAMPLING, box, _REDUCING_GAP))
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    mean_colour = tuple(round(value) for value in preprocessing.mean)
    square = Image.new("RGB", (size, size), mean_colour)
    square.paste(
        image.resize(inner, _RESAMPLING, box, _REDUCING_GAP),
        ((size - inner[0]) // 2, (size - inner[1]) // 2),
    )
    return np.array(square)
