"""Measures each step of captioning (listing, fetching, decoding, encoder, search), then all steps in a bare loop and in
the job.

Shapes: B images of a batch, S side of the square input.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlib.errors import UserError
from captionlib.images.decode import ImageDecodeError
from captionlib.images.transforms import ImageTransform
from captionlib.storage.errors import InputFault
from captionlib.storage.paths import is_local
from jobs.batch.chunk_images import READ_THREADS_REMOTE
from jobs.cluster.resources import num_cpus
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import ImageReader
from jobs.inputs.sources import Sources

if TYPE_CHECKING:
    from captionlib.captioners.base import LoadedCaptioner, Stages

LISTING_SECONDS = 10.0
"""Listing stops after this many seconds: for a bucket of millions, the first images represent all."""
CHUNK = 128
"""Number of images whose bytes are kept in memory at once."""
ROOT = Path(__file__).resolve().parents[2]
_OF_A_JOB = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Environment variables of `ray job submit`, which would make the caption job use the whole cluster."""


@dataclass(frozen=True)
class InputSample:
    """A random sample of the inputs."""

    images: list[ImageRef]
    """Images drawn at random from those that were listed."""
    num_seen: int
    seconds: float
    is_complete: bool
    """Whether the listing was complete."""


@dataclass
class Loaded:
    """The decoded images of the sample, and the seconds that fetching and decoding took."""

    pixels: list[np.ndarray] = field(default_factory=list)
    """HWC uint8 each, as the captioner's transform makes them."""
    num_failed: int = 0
    num_bytes: int = 0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class JobTimes:
    """Times of one run of `jobs.caption` in a process of its own."""

    seconds: float
    """Seconds of the whole process."""
    images_per_second: float | None
    """Rate after start-up; None if the job was too short to measure."""
    start_up_seconds: float
    """Seconds until the first images were captioned, without the start of the process."""
    run: Mapping[str, Any]
    """The run's entry in run.json."""


def sample_images(inputs: Sequence[str], count: int, seconds: float = LISTING_SECONDS) -> InputSample:
    """List the inputs and draw `count` images at random (reservoir sampling, Vitter 1985, Algorithm R).

    Raises:
        UserError: an input does not exist, or there are no images.
    """
    generator = random.Random(0)
    drawn: list[ImageRef] = []
    seen, is_complete = 0, True
    started = time.monotonic()
    for item in Sources(tuple(inputs)).list():
        seen += 1
        if len(drawn) < count:
            drawn.append(item)
        elif (place := generator.randrange(seen)) < count:
            drawn[place] = item
        if time.monotonic() - started > seconds:
            is_complete = False
            break
    if not drawn:
        raise UserError(f"there are no images in {' '.join(inputs)}")
    return InputSample(drawn, seen, time.monotonic() - started, is_complete)


def load(images: Sequence[ImageRef], transform: ImageTransform) -> Loaded:
    """Fetch, then decode, each with all CPUs and as many threads as the job would use. Images that fail are counted.

    Raises:
        OSError: the storage cannot be reached.
    """
    loaded = Loaded()
    decode_threads = num_cpus()
    fetch_threads = decode_threads if all(is_local(image.path) for image in images) else READ_THREADS_REMOTE
    with ThreadPoolExecutor(fetch_threads) as fetchers, ThreadPoolExecutor(decode_threads) as decoders:
        for start in range(0, len(images), CHUNK):
            started = time.monotonic()
            bodies = [data for data in fetchers.map(_fetch, images[start : start + CHUNK]) if data is not None]
            fetched = time.monotonic()
            pixels = list(decoders.map(lambda data: _decode(data, transform), bodies))
            loaded.decode_seconds += time.monotonic() - fetched
            loaded.fetch_seconds += fetched - started
            loaded.num_bytes += sum(map(len, bodies))
            loaded.pixels += [square for square in pixels if square is not None]
    loaded.num_failed = len(images) - len(loaded.pixels)
    if not loaded.pixels:
        raise UserError(f"none of {len(images)} images could be read: python -m jobs.caption reports the reasons")
    return loaded


def stage_seconds(stages: Stages, pixels: Sequence[np.ndarray], batch_size: int) -> tuple[float, float]:
    """Return the seconds of encoder and search for all images; the first batch runs twice and counts once."""
    encoder = searching = 0.0
    batches = [np.stack(pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size)]  # (B, S, S, 3)
    for number, batch in enumerate([batches[0], *batches]):
        started = time.monotonic()
        features = stages.encode(batch)
        encoded = time.monotonic()
        stages.search(features)
        if number:
            encoder += encoded - started
            searching += time.monotonic() - encoded
    return encoder, searching


def captioner_seconds(captioner: LoadedCaptioner, pixels: Sequence[np.ndarray]) -> float:
    """Return the seconds of a captioner for all images, after a first one that is not counted."""
    captioner.caption_images(_batch(pixels[:1]), [0])
    started = time.monotonic()
    captioner.caption_images(_batch(pixels), range(len(pixels)))
    return time.monotonic() - started


def _batch(pixels: Sequence[np.ndarray]) -> np.ndarray | Sequence[np.ndarray]:
    """Stack images of one size."""
    return np.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels


def loop_seconds(
    captioner: LoadedCaptioner, images: Sequence[ImageRef], transform: ImageTransform, batch_size: int
) -> float:
    """Return the seconds of a bare loop over the same steps in one process, the best that a script could do.

    Threads fetch and decode ahead, one thread captions, and nothing is written. Images that fail are skipped.
    """

    def load_one(image: ImageRef) -> np.ndarray | None:
        data = _fetch(image)
        return None if data is None else _decode(data, transform)

    threads = num_cpus() if all(is_local(image.path) for image in images) else READ_THREADS_REMOTE
    with ThreadPoolExecutor(threads) as pool:

        def batches() -> Iterator[list[np.ndarray]]:
            waiting: deque[Future[np.ndarray | None]] = deque()
            left = iter(images)
            batch: list[np.ndarray] = []
            while True:
                while len(waiting) < 4 * batch_size and (image := next(left, None)) is not None:
                    waiting.append(pool.submit(load_one, image))
                if not waiting:
                    break
                pixels = waiting.popleft().result()
                if pixels is not None:
                    batch.append(pixels)
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch

        first = [square for square in map(load_one, images[:batch_size]) if square is not None]
        if first:
            captioner.caption_images(_batch(first), range(len(first)))  # the model's first batch is slower
        started = time.monotonic()
        for batch in batches():
            captioner.caption_images(_batch(batch), range(len(batch)))
        return time.monotonic() - started


def time_job(source: str, output: str, *flags: str) -> JobTimes:
    """Run `python -m jobs.caption` on this machine in a process of its own.

    Raises:
        UserError: it failed; the message is the end of its output.
    """
    from captionlib.storage.folder import Folder
    from jobs.outputs.run_record import read_record

    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "jobs.caption", source, output, *flags]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"the caption job failed: {last}")
    run = read_record(Folder.of(output))["runs"][-1]
    return JobTimes(seconds, run["images_per_second"], run["start_up_seconds"], run)


def _fetch(image: ImageRef) -> bytes | None:
    try:
        with ImageReader() as reader:
            return reader.read(image)
    except InputFault:
        return None


def _decode(data: bytes, transform: ImageTransform) -> np.ndarray | None:
    try:
        return transform(data).pixels
    except ImageDecodeError:
        return None
