"""Splits the image processor of a model: the resize runs where images are decoded, the normalisation on the device.

Shapes: B images, S side of the square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captionlib.images.transforms import ResizeAndCrop

TOLERANCE = 1e-4
"""Largest difference from the processor's pixel values, which are about -2 to 2; one grey level is 0.015."""


@dataclass(frozen=True)
class SquareProcessor:
    """A processor that makes squares: `transform`, then `(value - mean) / std` for each channel."""

    transform: ResizeAndCrop
    mean: tuple[float, ...]
    """Mean of red, green and blue for values in [0, 255]."""
    std: tuple[float, ...]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 (B, S, S, 3) in [0, 255], on any device → float32 (B, 3, S, S) on the same device."""
        values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (B, 3, S, S)
        mean, std = (torch.tensor(given, device=pixels.device).view(1, -1, 1, 1) for given in (self.mean, self.std))
        return values.sub_(mean).div_(std)


def take_apart(image_processor: Any) -> SquareProcessor | None:
    """Split an image processor of transformers; return None if it does not make squares.

    The split is verified: the two halves must give the processor's own values for two images.
    """
    halves = _read(image_processor)
    if halves is None:
        return None
    generator = np.random.default_rng(0)
    for size in ((37, 61), (2 * halves.transform.side + 3, halves.transform.side + 1)):
        picture = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        try:
            expected = image_processor(picture, return_tensors="pt", input_data_format="channels_last")
        except Exception:  # a processor that needs other inputs than an image cannot be divided
            return None
        values = halves.normalize(torch.from_numpy(halves.transform.square(picture))[None])  # (1, 3, S, S)
        found = expected.get("pixel_values")
        if set(expected) != {"pixel_values"} or found.shape != values.shape:
            return None
        if (found - values).abs().max() > TOLERANCE:
            return None
    return halves


def _read(image_processor: Any) -> SquareProcessor | None:
    """Read the settings of a processor that makes squares; None for others."""

    def setting(name: str, default: Any = None) -> Any:
        return getattr(image_processor, name, default)

    size = _sides(setting("size"))
    if not setting("do_resize") or size is None:
        return None
    height, width = size
    side = width
    if setting("do_center_crop"):
        crop = _sides(setting("crop_size"))
        if crop is None or crop[0] != crop[1] or crop[1] > width:
            return None
        side = crop[1]
    elif height is None or height != width:
        return None
    scale = setting("rescale_factor", 1 / 255) if setting("do_rescale") else 1.0
    normalizes = setting("do_normalize")
    mean, std = (setting("image_mean"), setting("image_std")) if normalizes else ((0.0,) * 3, (1.0,) * 3)
    if mean is None or std is None or len(mean) != 3 or len(std) != 3:
        return None
    # Pillow's numbers of the filters.
    modes = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    resample = setting("resample")
    transform = ResizeAndCrop(
        side=side, height=height, width=width, interpolation=modes.get(2 if resample is None else int(resample), "")
    )
    return SquareProcessor(transform, tuple(float(m) / scale for m in mean), tuple(float(s) / scale for s in std))


def _sides(size: Any) -> tuple[int | None, int] | None:
    """Convert one of transformers' sizes to height and width, or to None and the shorter side."""
    if size is None:
        return None
    given = {name: size.get(name) for name in ("height", "width", "shortest_edge", "longest_edge")}
    if given["height"] and given["width"]:
        return int(given["height"]), int(given["width"])
    if given["shortest_edge"] and not given["longest_edge"]:
        return None, int(given["shortest_edge"])
    return None
