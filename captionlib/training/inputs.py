"""Loads the inputs of a step: stored features, or photos that are decoded on demand.

All random numbers come from the generator of the step, for all images of the step, whichever worker loads them. Any
number of workers and a resumed run therefore see the same inputs.

Shapes: B images, N positions, D feature width, S side of the square input of the encoder.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from captionlib.config import Preprocessing
from captionlib.devices import to_device
from captionlib.images.decode import ImageDecodeError
from captionlib.images.decode_pixels import decode_pixels
from captionlib.images.pixels import augment, to_pixels

T = TypeVar("T")
_SMALLEST_CROP = 0.5  # share of the area


class Inputs(Protocol):
    """The images of a dataset, addressed by position."""

    def __len__(self) -> int: ...

    def load(self, images: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> Tensor:
        """Load the inputs of a step.

        Args:
            images: positions of all images of the step.
            share: which of them this worker needs.
            generator: generator of the step.

        Returns:
            One row per image of the share.
        """
        ...


def shown_on(shown: Tensor, device: torch.device) -> Tensor:
    """Move the result of `Inputs.load` to a device: features become float32, pixels stay bytes.

    Features are copied in half precision, which halves the number of bytes.
    """
    moved = to_device(shown, device)
    return moved.float() if moved.is_floating_point() else moved


class FeatureViews:
    """Features (B, N, D) in their stored dtype, for each image from one of several views at random.

    Args:
        views: arrays (images, N, D) of different views of the same images (original, mirrored, ...).
        rows: for each image of the dataset, its position in the views.
    """

    def __init__(self, views: Sequence[np.ndarray], rows: np.ndarray) -> None:
        self.views, self.rows = views, rows

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, images: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> Tensor:
        view = generator.integers(len(self.views), size=len(images))
        return torch.from_numpy(np.stack([self.views[view[j]][self.rows[images[j]]] for j in share]))


class Photos:
    """Pixels (B, S, S, 3) uint8 of image files.

    Args:
        paths: path of each image of the dataset.
        preprocessing: preprocessing of the encoder.
        augmented: use random crops, mirrored with probability 0.5.
        read: path → bytes of the file.
        num_threads: number of threads that read and decode.
    """

    def __init__(
        self,
        paths: Sequence[str],
        preprocessing: Preprocessing,
        *,
        augmented: bool,
        read: Callable[[str], bytes],
        num_threads: int = 1,
    ) -> None:
        self.paths, self.preprocessing, self.augmented, self.read = paths, preprocessing, augmented, read
        self._pool = ThreadPoolExecutor(num_threads)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, images: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> Tensor:
        seeds = generator.integers(2**63, size=len(images))
        pixels = self._pool.map(self._load, [self.paths[images[j]] for j in share], [int(seeds[j]) for j in share])
        return torch.from_numpy(np.stack(list(pixels)))

    def _load(self, path: str, seed: int) -> np.ndarray:
        data = self.read(path)
        size = self.preprocessing.size
        try:
            if self.augmented:
                image = decode_pixels(data, target_side=round(size / _SMALLEST_CROP**0.5)).pixels
                return augment(image, self.preprocessing, np.random.default_rng(seed), min_area=_SMALLEST_CROP)
            return to_pixels(decode_pixels(data, target_side=size).pixels, self.preprocessing)
        except ImageDecodeError as error:
            raise ValueError(f"{path} cannot be trained on ({error}): leave it out of the captions") from error


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """Yield the same items, produced by a thread in advance; at most `depth` items wait."""
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not over.is_set():
            try:
                waiting.put((item, error), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
        except BaseException as error:  # it is raised again in the consuming thread
            put(None, error)
            return
        put(None, StopIteration())

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        over.set()
