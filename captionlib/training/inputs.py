"""What a step's images are shown as: features on disk, or the photos themselves, decoded as they are needed.

Everything random is drawn from the step's own generator, for all images of the step, whichever worker loads them:
so any number of workers, and a run that is resumed, see the same.

Shapes: B images, N positions, D feature width, S side of the encoder's square input.
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
_SMALLEST_CROP = 0.5  # of the area; `augment` takes no less


class Inputs(Protocol):
    """The images of a data set, by their positions in it."""

    def __len__(self) -> int: ...

    def load(self, images: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> Tensor:
        """What the decoder is shown of a step's images.

        Args:
            images: positions of all images of the step.
            share: which of these are wanted.
            generator: of the step.

        Returns:
            A row per wanted image.
        """
        ...


def shown_on(shown: Tensor, device: torch.device) -> Tensor:
    """What `Inputs.load` gave, on a device as a decoder takes it: features in float32, pixels as bytes.

    Features travel in the half precision in which they are stored, since half as many bytes are copied so.
    """
    moved = to_device(shown, device)
    return moved.float() if moved.is_floating_point() else moved


class FeatureViews:
    """Features (B, N, D) in the type that is stored, each image's from one of several views at random.

    Args:
        views: arrays (images, N, D) of the same images seen differently (as they are, mirrored, ...).
        rows: for each image of the data set, its position in the views.
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
        paths: for each image of the data set, where it is.
        preprocessing: the encoder's.
        augmented: show random crops, mirrored or not.
        read: path → the file's bytes.
        num_threads: that read and decode.
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
    """The same items, made by a thread while the last ones are worked on; at most `depth` wait."""
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
        except BaseException as error:  # for whoever waits, who raises it
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
