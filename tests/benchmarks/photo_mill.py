"""Many different JPEGs from a few photos, for the benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance


def make_images(folder: Path, photos: Path, count: int, side: int) -> None:
    """`count` different JPEGs, from photos by crops, mirroring and brightness."""
    folder.mkdir()
    sources = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.jpg"))]
    generator = np.random.default_rng(0)
    for i in range(count):
        source = sources[i % len(sources)]
        width, height = source.size
        share = generator.uniform(0.7, 1.0)
        left, top = generator.uniform(0, (1 - share) * width), generator.uniform(0, (1 - share) * height)
        crop = source.crop((int(left), int(top), int(left + share * width), int(top + share * height)))
        scale = side / max(crop.size)
        picture = crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.Resampling.BICUBIC)
        if generator.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = ImageEnhance.Brightness(picture).enhance(generator.uniform(0.7, 1.3))
        picture.save(folder / f"{i:06d}.jpg", quality=88)
