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
    return _scale(image, shown_part(*image.size, preprocessing), preprocessing)


def shown_part(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """What the encoder sees of a picture: left, top, right, bottom in its pixels."""
    if preprocessing.square != "center_crop":
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def filled_part(width: float, height: float, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """What a part of this width and height fills of the square: left, top, right, bottom in pixels in [0, S].

    The rest, there only with "pad", is of `padding_colour`.
    """
    size = preprocessing.size
    if preprocessing.square != "pad":
        return 0, 0, size, size
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def padding_colour(preprocessing: Preprocessing) -> tuple[int, ...]:
    """Red, green and blue in [0, 255] that are about 0 when normalized."""
    return tuple(round(value) for value in preprocessing.mean)


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
    left, top, right, bottom = shown_part(width, height, preprocessing)
    shown_width, shown_height = right - left, bottom - top
    area = generator.uniform(min_area, 1)
    limit = min(math.log(max_stretch), abs(math.log(area)))  # beyond, the crop would not fit
    stretch = math.exp(generator.uniform(-limit, limit))
    crop_width = min(width, shown_width * math.sqrt(area * stretch))
    crop_height = min(height, shown_height * math.sqrt(area / stretch))
    crop_left = generator.uniform(0, width - crop_width)
    crop_top = generator.uniform(0, height - crop_height)
    box = (crop_left, crop_top, min(width, crop_left + crop_width), min(height, crop_top + crop_height))
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
    left, top, right, bottom = filled_part(box[2] - box[0], box[3] - box[1], preprocessing)
    scaled = image.resize((right - left, bottom - top), _RESAMPLING, box, _REDUCING_GAP)
    size = (preprocessing.size, preprocessing.size)
    if scaled.size == size:
        return np.array(scaled)
    square = Image.new("RGB", size, padding_colour(preprocessing))
    square.paste(scaled, (left, top))
    return np.array(square)
