"""Decoding and scaling on one core: through Pillow alone, and as the jobs do it; with the differences of the pixels.

python tests/benchmarks/decoding.py FOLDER --size 288
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from captionlib.config import Preprocessing
from captionlib.images.decode import decode_image
from captionlib.images.decode_pixels import decode_pixels
from captionlib.images.pixels import to_pixels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "tests" / "photos")
parser.add_argument("--images", type=int, default=160)
parser.add_argument("--size", type=int, default=288)
parser.add_argument("--repeats", type=int, default=3)
arguments = parser.parse_args()
preprocessing = Preprocessing(size=arguments.size)
paths = sorted(arguments.folder.glob("*.jpg"))
files = [paths[i % len(paths)].read_bytes() for i in range(arguments.images)]


def by_pillow(data: bytes) -> np.ndarray:
    image = decode_image(data, target_side=arguments.size).image
    return np.array(image.resize((arguments.size, arguments.size), Image.Resampling.BICUBIC, None, 3.0))


def as_the_jobs(data: bytes) -> np.ndarray:
    return to_pixels(decode_pixels(data, target_side=arguments.size).pixels, preprocessing)


sides = {"Pillow": by_pillow, "as the jobs": as_the_jobs}
seconds: dict[str, list[float]] = {name: [] for name in sides}
differences = [np.abs(as_the_jobs(data).astype(int) - by_pillow(data)) for data in files[: len(paths)]]
for _ in range(arguments.repeats):
    for name, decode in sides.items():
        started = time.perf_counter()
        for data in files:
            decode(data)
        seconds[name].append(time.perf_counter() - started)
rates = {name: len(files) / statistics.median(values) for name, values in seconds.items()}
for name, rate in rates.items():
    print(f"{name:12} {rate:8.1f} images/s")
print(f"ratio        {rates['as the jobs'] / rates['Pillow']:8.2f}")
print(
    f"difference   mean {np.mean([d.mean() for d in differences]):.4f}, max {max(d.max() for d in differences)} levels"
)
