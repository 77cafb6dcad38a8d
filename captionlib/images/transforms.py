"""Transforms: convert the bytes of an image file to the pixels that a captioner needs.

The transform of a captioner is sent to the decoding tasks, and their pixels to the model.

Shapes: S side of a square, H and W of an image of any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from captionlib.config import Preprocessing
from captionlib.images.decode import MAX_PIXELS, ImageDecodeError
from captionlib.images.decode_pixels import DecodedPixels, decode_pixels
from captionlib.images.pixels import to_pixels


class ImageTransform(Protocol):
    """Decodes and scales an image file."""

    @property
    def side(self) -> int | None:
        """S, if each image becomes a square of this side in pixels; None if sizes differ."""

    @property
    def largest_bytes(self) -> int:
        """Largest size of the pixels of one image in bytes."""

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """Convert a whole file to pixels HWC uint8 in [0, 255].

        Args:
            max_pixels: as for `captionlib.images.decode.decode_image`.

        Raises:
            captionlib.images.ImageDecodeError: the bytes cannot be decoded.
        """


@dataclass(frozen=True)
class EncoderSquare:
    """The square of a checkpoint of this project. A large JPEG file is reduced during decoding."""

    preprocessing: Preprocessing

    @property
    def side(self) -> int:
        """S in pixels."""
        return self.preprocessing.size

    @property
    def largest_bytes(self) -> int:
        """3 · S²."""
        return 3 * self.side**2

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """See `ImageTransform`."""
        decoded = decode_pixels(data, target_side=self.side, max_pixels=max_pixels)
        return DecodedPixels(to_pixels(decoded.pixels, self.preprocessing), decoded.width, decoded.height)


@dataclass(frozen=True, kw_only=True)
class ResizeAndCrop:
    """The square of Hugging Face's image processors: antialiased resize by torchvision, then a centre crop.

    The file is decoded at full size, so that the pixels equal those of the processor.
    """

    side: int
    """S in pixels, after the crop."""
    height: int | None
    """Height of the resized image in pixels; None to scale the shorter side to `width` and keep the proportions."""
    width: int
    """Width of the resized image in pixels."""
    interpolation: str
    """Name of one of torchvision's `InterpolationMode`, such as "bicubic"."""

    @property
    def largest_bytes(self) -> int:
        """3 · S²."""
        return 3 * self.side**2

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """See `ImageTransform`."""
        decoded = decode_pixels(data, max_pixels=max_pixels)
        height, width = self._size(*decoded.pixels.shape[:2])
        if height * width > max_pixels:  # of a very long or high image, before it is cropped
            raise ImageDecodeError(
                "ImageTooLarge",
                f"{decoded.width} × {decoded.height} pixels, which this model needs scaled to {width} × {height}; "
                f"{max_pixels} pixels is the limit: crop it",
            )
        return DecodedPixels(self.square(decoded.pixels), decoded.width, decoded.height)

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """HWC uint8 (H, W, 3) → uint8 (S, S, 3)."""
        import torch
        from torchvision.transforms.v2 import functional

        height, width = self._size(*pixels.shape[:2])
        # Copied by NumPy, because PyTorch would start a thread per CPU for this in every decoding thread.
        channels_first = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # (3, H, W)
        mode = functional.InterpolationMode(self.interpolation)
        resized = functional.resize(channels_first, [height, width], interpolation=mode, antialias=True)
        if (height, width) != (self.side, self.side):
            top, left = int((height - self.side) / 2.0), int((width - self.side) / 2.0)
            resized = functional.crop(resized, top, left, self.side, self.side)
        return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())  # (S, S, 3)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.height is not None:
            return self.height, self.width
        shorter, longer = sorted((height, width))
        scaled = int(self.width * longer / shorter)
        return (self.width, scaled) if height <= width else (scaled, self.width)


@dataclass(frozen=True)
class MaxSide:
    """The image in its own proportions, for models of any resolution."""

    max_side: int
    """Largest length of the longer side in pixels; smaller images are not changed."""

    @property
    def side(self) -> None:
        """None: sizes differ."""
        return None

    @property
    def largest_bytes(self) -> int:
        """3 · max_side²."""
        return 3 * self.max_side**2

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """See `ImageTransform`."""
        decoded = decode_pixels(data, target_side=self.max_side, max_pixels=max_pixels)
        pixels = decoded.pixels
        height, width = pixels.shape[:2]
        if max(height, width) > self.max_side:
            scale = self.max_side / max(height, width)
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0))
        return DecodedPixels(pixels, decoded.width, decoded.height)
