"""JPEG files → square pixels on a GPU, many at once: torchvision's nvJPEG, then a resize as `to_pixels` does it.

What a GPU would not decode as `decode_image` does is told apart by its header; what it refuses is decoded on the CPU,
which also finds the words for what is wrong with it.

Shapes: H, W of a picture, S side of the square input.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from captionlib.config import Preprocessing
from captionlib.images import MAX_PIXELS, ImageDecodeError, decode_image, orientation_of
from captionlib.transforms import filled_part, padding_colour, shown_part, to_pixels

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS_AT_ONCE = 2**28
"""Of the pictures that are decoded together: 0.8 GB of a GPU's memory."""

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_RGB_AS_IDS = [ord(letter) for letter in "RGB"]


@dataclass(frozen=True)
class PlainJpeg:
    """A file that a GPU decodes as `decode_image` would."""

    data: bytes
    width: int
    """In pixels."""
    height: int
    """In pixels."""


def plain_jpeg(data: bytes) -> PlainJpeg | None:
    """The file, if it is a whole JPEG, upright, grey or in YCbCr, of no more than `MAX_PIXELS`; None for any other.

    nvJPEG knows nothing of EXIF, takes any three channels for YCbCr, and fills up what is missing at the end without
    a word.
    """
    if not data.startswith(_START) or not data.rstrip(b"\0").endswith(_END):
        return None
    try:
        image = JpegImageFile(io.BytesIO(data), "")
    except Exception:  # Pillow's parsers raise nearly every class of exception on damaged bytes
        return None
    is_rgb = image.info.get("adobe_transform") == 0 or [layer[0] for layer in image.layer] == _RGB_AS_IDS
    if image.mode not in ("L", "RGB") or (image.mode == "RGB" and is_rgb) or orientation_of(image) != 1:
        return None
    width, height = image.size
    return PlainJpeg(data, width, height) if width * height <= MAX_PIXELS else None


@dataclass(frozen=True)
class JpegDecoder:
    """Decodes plain JPEGs on a device."""

    preprocessing: Preprocessing
    """Of the checkpoint."""
    device: str = "cuda"
    """Where to decode; "cpu" does the same without a GPU, slowly."""

    def check(self) -> None:
        """Decode a small picture.

        Raises:
            ValueError: it cannot be done here.
        """
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        try:
            self._decode_together([PlainJpeg(file.getvalue(), 16, 16)])
        except (RuntimeError, ImportError) as error:  # torchvision has announced that it will leave out decoding
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"JPEGs cannot be decoded on {self.device} here: {reason}") from error

    def __call__(self, files: Sequence[PlainJpeg]) -> list[np.ndarray | ImageDecodeError]:
        """For each file its pixels uint8 (S, S, 3), close to what `to_pixels` makes of it; or the error.

        The picture is reduced from its full size, where `decode_image` may read it at a half or less.
        """
        found: list[np.ndarray | ImageDecodeError] = []
        for some in _in_turns(files):
            found += self._decode(some)
        return found

    def _decode(self, files: Sequence[PlainJpeg]) -> list[np.ndarray | ImageDecodeError]:
        try:
            return list(self._decode_together(files))
        except RuntimeError:  # one is enough to refuse all, and it does not say which
            if len(files) == 1:
                return [self._on_the_cpu(files[0])]
            half = len(files) // 2
            return self._decode(files[:half]) + self._decode(files[half:])

    def _decode_together(self, files: Sequence[PlainJpeg]) -> np.ndarray:
        """Pixels uint8 (files, S, S, 3).

        Raises:
            RuntimeError: the device refuses a file, or does not decode at all.
        """
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

        encoded = [torch.frombuffer(bytearray(file.data), dtype=torch.uint8) for file in files]
        pictures = decode_jpeg(encoded, ImageReadMode.RGB, self.device)  # uint8 (3, H, W) each
        return torch.stack([self._square(picture) for picture in pictures]).cpu().numpy()

    def _square(self, picture: Tensor) -> Tensor:
        """uint8 (3, H, W) → (S, S, 3), as `captionlib.transforms.to_pixels`."""
        height, width = picture.shape[1:]
        left, top, right, bottom = shown_part(width, height, self.preprocessing)
        shown = picture[:, top:bottom, left:right]
        left, top, right, bottom = filled_part(right - left, bottom - top, self.preprocessing)
        scaled = _resize(shown, bottom - top, right - left)
        size = self.preprocessing.size
        square = scaled.new_tensor(padding_colour(self.preprocessing)).expand(size, size, 3).clone()
        square[top:bottom, left:right] = scaled
        return square

    def _on_the_cpu(self, file: PlainJpeg) -> np.ndarray | ImageDecodeError:
        try:
            return to_pixels(decode_image(file.data, target_side=self.preprocessing.size).image, self.preprocessing)
        except ImageDecodeError as error:
            return error


def _resize(picture: Tensor, height: int, width: int) -> Tensor:
    """uint8 (3, H, W) → (height, width, 3), bicubic with antialiasing."""
    import torch

    resized = torch.nn.functional.interpolate(picture[None].float(), (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def _in_turns(files: Sequence[PlainJpeg]) -> Iterator[list[PlainJpeg]]:
    """Files whose pictures fit into `MAX_PIXELS_AT_ONCE` together."""
    some: list[PlainJpeg] = []
    pixels = 0
    for file in files:
        size = file.width * file.height
        if some and pixels + size > MAX_PIXELS_AT_ONCE:
            yield some
            some, pixels = [], 0
        some.append(file)
        pixels += size
    if some:
        yield some
