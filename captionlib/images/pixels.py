"""Converts an upright RGB image to the square uint8 input of an encoder, and normalises it.

The `Preprocessing` of the checkpoint alone determines size, square mode and channel statistics.

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

# Bicubic with antialiasing: PyTorch's, which is Pillow's filter in vector instructions and differs from it by less than
# 0.1 grey levels on photos. From 6-fold reduction on, Pillow first averages blocks of pixels and leaves at least a
# 3-fold reduction to the filter, which is faster for large images and gives nearly the same result.
_RESAMPLING = Image.Resampling.BICUBIC
_REDUCING_GAP = 3.0


def to_pixels(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Scale an upright RGB image to the encoder's square, in one antialiased step.

    Args:
        image: a picture of mode RGB, or its pixels HWC uint8 (H, W, 3) in [0, 255].

    Returns:
        HWC uint8 (S, S, 3) in [0, 255], contiguous and writable.
    """
    picture = _as_array(image)
    height, width = picture.shape[:2]
    part = shown_part(width, height, preprocessing)
    if part != (0, 0, width, height):
        # For "center_crop", Pillow's filter uses the pixels outside the crop, as if the whole image were scaled first.
        square = Image.fromarray(picture).resize((preprocessing.size,) * 2, _RESAMPLING, part, _REDUCING_GAP)
        return np.array(square)
    return _scale(picture, part, preprocessing)


def shown_part(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int, int, int]:
    """Return the part of an image that the encoder sees: left, top, right, bottom in pixels of the image."""
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
    """Return the colour (red, green, blue in [0, 255]) that is approximately 0 after normalisation."""
    return tuple(round(value) for value in preprocessing.mean)


def augment(
    image: Image.Image | np.ndarray,
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
        image: upright RGB: a picture, or its pixels HWC uint8 (H, W, 3). The crop is of whole pixels.
        min_area: the crop's smallest share of what `to_pixels` would show, in (0, 1].
        max_stretch: the crop is at most this many times wider or narrower than what `to_pixels` would show.

    Returns:
        HWC uint8 (S, S, 3) in [0, 255].
    """
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be in (0, 1], got {min_area}")
    if max_stretch < 1:
        raise ValueError(f"max_stretch must be at least 1, got {max_stretch}")
    picture = _as_array(image)
    height, width = picture.shape[:2]
    left, top, right, bottom = shown_part(width, height, preprocessing)
    shown_width, shown_height = right - left, bottom - top
    area = generator.uniform(min_area, 1)
    # With more stretching, the crop would not fit into the image.
    limit = min(math.log(max_stretch), abs(math.log(area)))
    stretch = math.exp(generator.uniform(-limit, limit))
    crop_width = min(width, shown_width * math.sqrt(area * stretch))
    crop_height = min(height, shown_height * math.sqrt(area / stretch))
    crop_left = generator.uniform(0, width - crop_width)
    crop_top = generator.uniform(0, height - crop_height)
    box = (crop_left, crop_top, min(width, crop_left + crop_width), min(height, crop_top + crop_height))
    pixels = _scale(picture, box, preprocessing)
    return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels


def normalize(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Normalise pixels for the encoder: (value - mean) / std for each channel.

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
    # A contiguous (B, S, S, 3) viewed as (B, 3, S, S) is already in channels-last order, so nothing is copied.
    return pixels.float().contiguous().sub_(mean).div_(std).permute(0, 3, 1, 2)  # (B, 3, S, S)


def blank_pixels(preprocessing: Preprocessing) -> np.ndarray:
    """Return zeros, uint8 (S, S, 3), in place of an image that could not be decoded."""
    return np.zeros((preprocessing.size, preprocessing.size, 3), dtype=np.uint8)


def _as_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """HWC uint8 (H, W, 3)."""
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"image must have mode RGB, got {image.mode}: decode_image gives it, or image.convert")
        return np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 of shape (H, W, 3), got {image.dtype} of shape {image.shape}")
    return image


def _scale(picture: np.ndarray, box: Box, preprocessing: Preprocessing) -> np.ndarray:
    """The part `box` of the picture (H, W, 3) as uint8 (S, S, 3): stretched, or padded to a square."""
    left, top, right, bottom = filled_part(box[2] - box[0], box[3] - box[1], preprocessing)
    scaled = _resize(picture, box, bottom - top, right - left)
    size = preprocessing.size
    if scaled.shape[:2] == (size, size):
        return scaled
    square = np.empty((size, size, 3), np.uint8)
    square[:] = padding_colour(preprocessing)
    square[top:bottom, left:right] = scaled
    return square


def _crop(picture: np.ndarray, box: Box) -> np.ndarray:
    """The part of the picture in whole pixels, one at least each way."""
    height, width = picture.shape[:2]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return picture[top : max(top + 1, round(box[3])), left : max(left + 1, round(box[2]))]


def _resize(picture: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
    """The part `box` of uint8 (H, W, 3) → (height, width, 3), contiguous and writable."""
    reduction = max((box[2] - box[0]) / width, (box[3] - box[1]) / height)
    if reduction >= 2 * _REDUCING_GAP:
        return np.array(Image.fromarray(picture).resize((width, height), _RESAMPLING, box, _REDUCING_GAP))
    import torch

    part = _crop(picture, box)
    # Copied by NumPy where it is a part of a larger picture: PyTorch would wake its threads for that, one for each CPU,
    # in every thread that decodes.
    contiguous = np.require(part, requirements=["C", "W"])
    # (1, 3, H, W), in channels-last order without a copy.
    channels_first = torch.from_numpy(contiguous).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(channels_first, (height, width), mode="bicubic", antialias=True)
    scaled = resized[0].permute(1, 2, 0).numpy()
    # A part that already has the right size may be returned without a copy, but the caller may modify the result.
    return scaled.copy() if np.may_share_memory(scaled, picture) else np.ascontiguousarray(scaled)
