"""Forms the batches of each step; they do not depend on the number of workers.

The order of an epoch is drawn from (seed, epoch). The images of each step are taken from that order and then divided
among the workers, so that any number of workers sees the same steps, and a resumed run continues exactly.

Shapes: B images of this worker, K captions per image, T words with `<bos>` and `<eos>`, N positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captionlib.training.inputs import Inputs
from captionlib.vocabulary import BOS, EOS, PAD

CaptionChoice = Literal["all", "random", "index", "longest", "shortest"]


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step."""

    features: Tensor
    """(B, N, D) float16 or float32; or pixels (B, S, S, 3) uint8, where the encoder runs in training."""
    tokens: Tensor
    """(B, K, T) int64: `<bos>` words `<eos>`, then `<pad>`. A missing caption is all `<pad>`."""
    images: np.ndarray
    """(B,) positions of the images in the data set, for error messages."""
    num_words: float
    """Number of words to learn in the whole step over all workers, each times the weight of its caption. Sums over
    words are divided by it."""
    num_captions: int
    """Number of captions in the whole step, weighted likewise."""
    num_images: int
    """Number of images in the whole step."""
    weights: Tensor | None = None
    """(B, K) float32: weight of each caption; None if all weights are 1."""
    objects: Tensor | None = None
    """(B, C) int8: objects in the images, see `captionlib.training.objects`; None if they are not learnt."""
    num_labelled: int = 0
    """Number of images in the whole step whose objects are known."""


class CaptionBatches:
    """Draws the steps of each epoch.

    Args:
        inputs: features or photos of the images.
        captions: for each image of the dataset, its captions as word ids.
        images_per_step: number of images over all workers together.
        choice: which captions of an image a step learns.
        caption_index: index for the choice `index`; the last caption if there are fewer.
        captions_per_image: number for the choice `random`; all captions if there are fewer.
        weights: for each image, the weights of its captions; default: 1.
        objects: (images, C) int8, see `captionlib.training.objects`; default: no labels.
    """

    def __init__(
        self,
        inputs: Inputs,
        captions: Sequence[Sequence[Sequence[int]]],
        *,
        images_per_step: int,
        choice: CaptionChoice = "all",
        caption_index: int = 0,
        captions_per_image: int = 1,
        weights: Sequence[Sequence[float]] | None = None,
        objects: np.ndarray | None = None,
        max_tokens: int = 30,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(inputs) != len(captions):
            raise ValueError(f"{len(inputs)} images but {len(captions)} lists of captions")
        self.inputs = inputs
        self.captions = [[list(caption[:max_tokens]) for caption in of_image] for of_image in captions]
        self.images_per_step, self.choice, self.caption_index, self.seed = images_per_step, choice, caption_index, seed
        self.captions_per_image, self.weights, self.objects = captions_per_image, weights, objects
        self.rank, self.world_size = rank, world_size
        smallest_step = len(inputs) // len(self) if len(inputs) else 0
        if smallest_step < world_size:
            raise ValueError(
                f"steps of {smallest_step} images do not give each of {world_size} workers one: "
                "use fewer workers, or raise images_per_step"
            )

    def __len__(self) -> int:
        """Number of steps per epoch. Their sizes differ by at most one image, so that no step is a small remainder."""
        return -(-len(self.inputs) // self.images_per_step)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield this worker's batches of one epoch, from `first_step` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.inputs))
        steps = np.array_split(order, len(self))
        for step, images in enumerate(steps[first_step:], start=first_step):
            rng = np.random.default_rng([self.seed, epoch, step])
            chosen = [self._choose(self.captions[i], rng) for i in images]  # positions among the image's captions
            captions = [[self.captions[i][k] for k in of_image] for i, of_image in zip(images, chosen, strict=True)]
            weights = None
            if self.weights is not None:
                weights = [[self.weights[i][k] for k in of_image] for i, of_image in zip(images, chosen, strict=True)]
            share = np.array_split(np.arange(len(images)), self.world_size)[self.rank]
            yield Batch(
                features=self.inputs.load(images, share, rng),
                tokens=pad_captions([captions[j] for j in share]),
                images=images[share],
                num_words=_num_words(captions, weights),
                num_captions=sum(map(len, captions)),
                num_images=len(images),
                weights=None if weights is None else pad_weights([weights[j] for j in share]),
                objects=None if self.objects is None else torch.from_numpy(self.objects[images[share]]),
                num_labelled=0 if self.objects is None else int((self.objects[images] >= 0).all(axis=1).sum()),
            )

    def _choose(self, captions: Sequence[list[int]], rng: np.random.Generator) -> list[int]:
        if self.choice == "all":
            return list(range(len(captions)))
        if self.choice == "random":
            return rng.permutation(len(captions))[: self.captions_per_image].tolist()
        if self.choice == "index":
            return [min(self.caption_index, len(captions) - 1)]
        pick = max if self.choice == "longest" else min
        return [pick(range(len(captions)), key=lambda k: len(captions[k]))]


def _num_words(captions: Sequence[Sequence[Sequence[int]]], weights: Sequence[Sequence[float]] | None) -> float:
    """Count the words to learn, including `<eos>`, each times the weight of its caption."""
    if weights is None:
        return sum(len(caption) + 1 for of_image in captions for caption in of_image)
    pairs = zip(captions, weights, strict=True)
    return sum(w * (len(caption) + 1) for of_image, ws in pairs for caption, w in zip(of_image, ws, strict=True))


def pad_weights(weights: Sequence[Sequence[float]]) -> Tensor:
    """Convert the weights of the captions of B images to (B, K) float32; a missing caption has weight 0."""
    padded = torch.zeros(len(weights), max(map(len, weights)))
    for b, of_image in enumerate(weights):
        padded[b, : len(of_image)] = torch.tensor(of_image)
    return padded


def pad_captions(captions: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Convert captions of B images to (B, K, T) int64 with `<bos>`, `<eos>` and `<pad>`; K and T are the largest."""
    num_captions = max(len(of_image) for of_image in captions)
    length = max(len(caption) for of_image in captions for caption in of_image) + 2
    tokens = torch.full((len(captions), num_captions, length), PAD)
    for b, of_image in enumerate(captions):
        for k, caption in enumerate(of_image):
            tokens[b, k, : len(caption) + 2] = torch.tensor([BOS, *caption, EOS])
    return tokens


def side_by_side(tokens: Tensor, others: Tensor) -> Tensor:
    """Concatenate (B, K, T) and (B, K', T') captions of the same images → (B, K + K', max(T, T'))."""
    length = max(tokens.shape[-1], others.shape[-1])
    padded = [F.pad(part, (0, length - part.shape[-1]), value=PAD) for part in (tokens, others)]
    return torch.cat(padded, dim=1)
