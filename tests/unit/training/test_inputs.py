"""Photos as inputs: the same for any number of workers; and items made ahead by a thread."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from captionlib.config import Preprocessing
from captionlib.images.pixels import to_pixels
from captionlib.training.inputs import Photos, ahead

SIZE = 16
IMAGES = np.array([2, 0, 1])


def picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def read(path: str) -> bytes:
    if path == "broken":
        return b"not an image"
    sink = io.BytesIO()
    picture(int(path)).save(sink, "PNG")
    return sink.getvalue()


def photos(*, augmented: bool) -> Photos:
    return Photos(["0", "1", "2"], Preprocessing(size=SIZE), augmented=augmented, read=read, num_threads=2)


def load(inputs: Photos, share: list[int], seed: int = 0) -> torch.Tensor:
    return inputs.load(IMAGES, np.array(share), np.random.default_rng(seed))


def test_without_augmentation_they_are_what_captioning_sees() -> None:
    found = load(photos(augmented=False), [0, 1, 2])
    expected = np.stack([to_pixels(picture(i), Preprocessing(size=SIZE)) for i in IMAGES])
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), expected)


def test_two_workers_see_what_one_sees_and_other_steps_see_other_crops() -> None:
    inputs = photos(augmented=True)
    whole = load(inputs, [0, 1, 2])
    assert torch.equal(torch.cat([load(inputs, [0, 1]), load(inputs, [2])]), whole)
    assert torch.equal(load(inputs, [0, 1, 2]), whole)
    assert not torch.equal(load(inputs, [0, 1, 2], seed=1), whole)


def test_a_photo_that_cannot_be_decoded_is_named() -> None:
    inputs = Photos(["broken"], Preprocessing(size=SIZE), augmented=False, read=read)
    with pytest.raises(ValueError, match="broken cannot be trained on"):
        inputs.load(np.array([0]), np.array([0]), np.random.default_rng(0))


def test_ahead_gives_the_items_and_then_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("no more")

    stream = ahead(items())
    assert [next(stream) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    assert list(ahead(iter(range(7)), depth=1)) == list(range(7))


def test_ahead_stops_when_nobody_wants_more() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(10_000):
            made.append(i)
            yield i

    before = threading.active_count()
    stream = ahead(items(), depth=2)
    assert next(stream) == 0
    stream.close()
    for thread in threading.enumerate():
        if thread.name.startswith("Thread") and thread is not threading.current_thread():
            thread.join(timeout=2)
    assert threading.active_count() <= before
    assert len(made) < 10
