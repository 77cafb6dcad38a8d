"""Bytes of an image file → the pixels that a captioner asks for: what decoding tasks do for a model that is elsewhere.

Each captioner names its transform; the transform travels to the decoding tasks, and the pixels to the model.

Shapes: S side of a square, H and W of a picture whose size is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from captionlib.config import Preprocessing
from captionlib.images.decode import MAX_PIXELS
from captionlib.images.decode_pixels import DecodedPixels, decode_pixels
from captionlib.images.pixels import to_pixels


class ImageTransform(Protocol):
    """Decodes an image file and scales it."""

    @property
    def side(self) -> int | None:
        """S, where each picture becomes a square of this side in pixels; None where their sizes differ."""

    @property
    def largest_bytes(self) -> int:
        """Memory that the pixels of one picture take at most."""

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """The whole file → pixels HWC uint8 in [0, 255].

        Args:
            max_pixels: as `captionlib.images.decode.decode_image`.

        Raises:
            captionlib.images.ImageDecodeError: the bytes are no picture that can be read.
        """


@dataclass(frozen=True)
class EncoderSquare:
    """The square of a checkpoint of this project. A large JPEG file is reduced while it is decoded."""

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
    """The square that Hugging Face's image processors make: antialiased resize in torchvision, then a centre crop.

    The file is decoded at full size, so that the pixels are those of the processor.
    """

    side: int
    """S in pixels, after the crop."""
    height: int | None
    """Of the resize, in pixels; None to scale the shorter side to `width` and keep the proportions."""
    width: int
    """Of the resize, in pixels."""
    interpolation: str
    """Such as "bicubic": one of torchvision's `InterpolationMode`."""

    @property
    def largest_bytes(self) -> int:
        """3 · S²."""
        return 3 * self.side**2

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedPixels:
        """See `ImageTransform`."""
        decoded = decode_pixels(data, max_pixels=max_pixels)
        return DecodedPixels(self.square(decoded.pixels), decoded.width, decoded.height)

    def square(self, pixels: np.ndarray) -> np.ndarray:
        """HWC uint8 (H, W, 3) → uint8 (S, S, 3)."""
        import torch
        from torchvision.transforms.v2 import functional

        height, width = self._size(*pixels.shape[:2])
        # By NumPy: PyTorch would wake a thread for each CPU for this copy, in every thread that decodes.
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
    """The picture in its own proportions, for a model that takes any resolution."""

    max_side: int
    """The longer side is at most this many pixels; smaller pictures stay as they are."""

    @property
    def side(self) -> None:
        """Sizes differ."""
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
