"""How much of a machine the caption job turns into captions, beside a bare loop with the same model.

    python tests/benchmarks/caption_throughput.py
    python tests/benchmarks/caption_throughput.py --photos FOLDER --images 500 --repeats 1

The bare loop is what a script would do at best: a pool of threads decodes, one process captions, nothing is
written. The job is timed as a person runs it, and once warm, as it says itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

PHOTOS = Path(__file__).parent.parent / "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="photos to make the images from")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--side", type=int, default=640, help="longer side of the images, in pixels")
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        make_images(images, arguments.photos, arguments.images, arguments.side)
        model = ["--model", arguments.model] if arguments.model else []
        loop_rates, job_rates, warm_rates = [], [], []
        for repeat in range(arguments.repeats):
            loop_rates.append(bare_loop(images, arguments.model, arguments.batch_size))
            output = Path(folder) / f"out{repeat}"
            started = time.monotonic()
            subprocess.run(
                [sys.executable, "-m", "jobs.caption", str(images), str(output), "--no-report",
                 "--batch-size", str(arguments.batch_size), *model],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            job_rates.append(arguments.images / (time.monotonic() - started))
            warm_rates.append(json.loads((output / "run.json").read_text())["runs"][-1]["images_per_second"])
            print(
                f"run {repeat + 1}: bare loop {loop_rates[-1]:.1f} images/s, job once warm {warm_rates[-1]:.1f}, "
                f"job from start to end {job_rates[-1]:.1f}"
            )
    loop, warm, whole = map(statistics.median, (loop_rates, warm_rates, job_rates))
    print(f"\n{arguments.images} images of {arguments.side} px, {os.cpu_count()} CPUs, medians of {arguments.repeats}:")
    print(f"  bare loop           {loop:7.1f} images/s")
    print(f"  job once warm       {warm:7.1f} images/s  {warm / loop:.2f} of the bare loop")
    print(f"  job, start to end   {whole:7.1f} images/s  {whole / loop:.2f}")


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


def bare_loop(images: Path, model: str | None, batch_size: int) -> float:
    """Images per second of threads that decode and one predictor, without loading and the first batch."""
    from captionlib.images import decode_image
    from captionlib.predictor import Predictor
    from captionlib.transforms import to_pixels

    predictor = Predictor.from_checkpoint(model) if model else Predictor.from_checkpoint()
    preprocessing = predictor.preprocessing

    def load(path: Path) -> np.ndarray:
        return to_pixels(decode_image(path.read_bytes(), target_side=preprocessing.size).image, preprocessing)

    paths = sorted(images.iterdir())
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def batches() -> Iterator[list[np.ndarray]]:
            waiting: deque[Future[np.ndarray]] = deque()
            left = iter(paths)
            batch: list[np.ndarray] = []
            while True:
                while len(waiting) < 4 * batch_size and (path := next(left, None)) is not None:
                    waiting.append(pool.submit(load, path))
                if not waiting:
                    break
                batch.append(waiting.popleft().result())
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch

        predictor.caption_pixels(np.stack([load(path) for path in paths[:batch_size]]), None, range(batch_size))
        started, first = time.monotonic(), 0
        for batch in batches():
            predictor.caption_pixels(np.stack(batch), None, range(first, first + len(batch)))
            first += len(batch)
        return len(paths) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
