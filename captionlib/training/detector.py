"""Training of a word detector on stored features; takes minutes on a CPU.

The target of a word is the share of an image's captions that contain it, which is what `WordDetector` estimates.

Shapes: I images, N positions, D feature width, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captionlib.config import DetectorConfig
from captionlib.training.settings import DetectorTraining
from captionlib.word_detector import WordDetector, pool

_IMAGES_AT_ONCE = 256


def word_shares(
    captions: Sequence[Sequence[Sequence[int]]], weights: Sequence[Sequence[float]] | None, vocabulary_size: int
) -> Tensor:
    """Return the targets (I, V) float16 in [0, 1]: the share of each image's captions that contain each word.

    Args:
        captions: for each image, its captions as word ids; at least one.
        weights: for each image, the weights of its captions, positive in sum; None for equal weights.
        vocabulary_size: V.
    """
    shares = torch.zeros(len(captions), vocabulary_size, dtype=torch.float16)
    for i, of_image in enumerate(captions):
        weight = [1.0] * len(of_image) if weights is None else list(weights[i])
        row = torch.zeros(vocabulary_size)
        for caption, w in zip(of_image, weight, strict=True):
            row[list(set(caption))] += w / sum(weight)
        shares[i] = row
    return shares


def pooled_views(views: Sequence[np.ndarray], rows: np.ndarray) -> list[Tensor]:
    """Pool the features of images in each view: arrays (·, N, D) and positions (I,) → tensors (I, 2D) float32."""
    return [
        torch.cat(
            [
                pool(torch.from_numpy(view[rows[start : start + _IMAGES_AT_ONCE]]))
                for start in range(0, len(rows), _IMAGES_AT_ONCE)
            ]
        )
        for view in views
    ]


def train_detector(
    views: Sequence[Tensor],
    shares: Tensor,
    config: DetectorConfig,
    settings: DetectorTraining,
    report: Callable[[int, float], None],
) -> WordDetector:
    """Train a detector.

    Its inputs are standardised in training; in the end, the scales become a part of its weights.

    Args:
        views: pooled features (I, 2D) of different views of the same images; a step takes one of them per image.
        shares: result of `word_shares`.
        config: width and dropout.
        settings: length and learning rate.
        report: called after each epoch with its number, from 1, and the mean loss per image (nats, summed over words).
    """
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    frequencies = shares.float().mean(dim=0)
    mean, scale = _standardisation(views)
    detector = WordDetector(config, views[0].shape[1] // 2, shares.shape[1])
    detector.frequencies.copy_(frequencies)
    with torch.no_grad():  # the first steps would otherwise only learn how frequent the words are
        detector.output.bias.copy_(torch.logit(frequencies.clamp(1e-5, 1 - 1e-5)))
    optimizer = torch.optim.Adam(detector.parameters(), settings.learning_rate)
    steps_per_epoch = -(-len(shares) // settings.images_per_step)
    num_steps, step = steps_per_epoch * settings.epochs, 0
    for epoch in range(settings.epochs):
        detector.train()
        total = 0.0
        for images in np.array_split(generator.permutation(len(shares)), steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            chosen = generator.integers(len(views), size=len(images))
            inputs = torch.stack([views[v][i] for v, i in zip(chosen, images, strict=True)])
            loss = _loss(detector((inputs - mean) / scale), shares[images])
            optimizer.zero_grad()
            (loss / len(images)).backward()
            optimizer.step()
            total += float(loss.detach())
            step += 1
        report(epoch + 1, total / len(shares))
    _absorb(detector, mean, scale)
    return detector.eval()


@torch.inference_mode()
def mean_loss(detector: WordDetector, pooled: Tensor, shares: Tensor) -> tuple[float, float]:
    """Return the mean loss per image (nats) of a finished detector, and that of the words' frequencies alone.

    Args:
        pooled: (I, 2D), from `pooled_views`.
        shares: (I, V), from `word_shares`.
    """
    constant = torch.logit(detector.frequencies.clamp(1e-5, 1 - 1e-5)).expand(len(shares), -1)
    return tuple(float(_loss(logits, shares)) / len(shares) for logits in (detector(pooled), constant))  # type: ignore[return-value]


def _loss(logits: Tensor, shares: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, shares.float(), reduction="sum")


def _standardisation(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (2D,) of each input. Inputs that hardly vary are not blown up."""
    mean, deviation = views[0].mean(dim=0), views[0].std(dim=0)
    return mean, deviation.clamp(min=float(deviation.median()) / 10 + 1e-6)


@torch.no_grad()
def _absorb(detector: WordDetector, mean: Tensor, scale: Tensor) -> None:
    """Make the standardisation a part of the first layer: W (x - mean) / scale + b = W' x + b'."""
    detector.hidden.weight.div_(scale)
    detector.hidden.bias.sub_(detector.hidden.weight @ mean)
