"""The word detector: predicts from an image which words people would use in a caption of it.

Word detectors come from Fang et al. 2015 (arXiv:1411.4952, section 3). Here a detector has two uses: the captions of a
beam are re-ranked (`captionlib.search.rerank`), and the confidence of a caption is computed from it
(`captionlib.confidence`). It is a second opinion: a decoder that has begun a sentence tends to
complete it with words that often follow, and the detector does not know the sentence.

Shapes: B images, N positions, D feature width, H hidden width, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DetectorConfig
from captionlib.vocabulary import SPECIAL_WORDS

CONTENT_BELOW = 0.25
"""Words that occur in a larger share of all captions, such as "a" and "is", say nothing about the image."""
_SMALLEST = 1e-3
"""Added to probabilities before their logarithm is taken, so that one unexpected word does not decide everything."""
_RAREST = 1e-4


class WordDetector(nn.Module):
    """Features of an image → the probability of each word.

    The probability of a word is the expected share of the image's captions that contain it. The mean and the maximum of
    the features over the positions go through one hidden layer.

    Args:
        config: width and dropout.
        feature_dim: D.
        vocabulary_size: V.
    """

    def __init__(self, config: DetectorConfig, feature_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.hidden = nn.Linear(2 * feature_dim, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("frequencies", torch.zeros(vocabulary_size))
        """(V,): share of all captions that contain each word."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features (B, 2D) → logits (B, V)."""
        return self.output(self.dropout(F.relu(self.hidden(self.dropout(pooled)))))

    @torch.inference_mode()
    def detect(self, features: Tensor) -> list[DetectedWords]:
        """Detect the words of images with features (B, N, D). Use it in evaluation mode."""
        probabilities = torch.sigmoid(self(pool(features))).float().cpu().numpy()
        words = ContentWords.of(self.frequencies.float().cpu().numpy())
        return [DetectedWords(of_image, words) for of_image in probabilities]


def pool(features: Tensor) -> Tensor:
    """Features (B, N, D) → their mean and their maximum over the positions, side by side (B, 2D)."""
    features = features.float()
    return torch.cat([features.mean(dim=1), features.amax(dim=1)], dim=1)


@dataclass(frozen=True)
class ContentWords:
    """The words that say something about an image."""

    frequencies: np.ndarray
    """(V,): share of all captions that contain each word."""
    information: np.ndarray
    """(V,): -log(frequency), by which CIDEr-D weighs words as well; 0 for other words."""

    @classmethod
    def of(cls, frequencies: np.ndarray) -> ContentWords:
        """Select the words that occur in some captions, and not in too many."""
        is_content = (frequencies > 0) & (frequencies < CONTENT_BELOW)
        is_content[: len(SPECIAL_WORDS)] = False
        return cls(frequencies, np.where(is_content, -np.log(frequencies + _RAREST), 0.0))

    def among(self, tokens: Sequence[int]) -> list[int]:
        """Return the content words of a caption, each once."""
        return [word for word in dict.fromkeys(tokens) if self.information[word] > 0]


@dataclass(frozen=True)
class DetectedWords:
    """What the detector says about one image."""

    probabilities: np.ndarray
    """(V,): probability of each word."""
    words: ContentWords

    def log_probability(self, tokens: Sequence[int]) -> float:
        """Return the mean log-probability of the content words of a caption; 0 for a caption without any."""
        content = self.words.among(tokens)
        return float(np.log(self.probabilities[content] + _SMALLEST).mean()) if content else 0.0

    def signals(self, tokens: Sequence[int]) -> tuple[float, float, float, float]:
        """Compute the evidence about a caption for `captionlib.confidence`; see `DETECTOR_SIGNALS` there."""
        information = self.words.information
        expected = self.probabilities * information  # (V,)
        strongest = _sum_of_largest(expected, 5)
        content = self.words.among(tokens)
        if not content:
            return 0.0, 0.0, 0.0, strongest
        found = expected[content].sum()
        likeliest = _sum_of_largest(self.probabilities * (information > 0), 8)
        gain = np.log(self.probabilities[content] + _SMALLEST) - np.log(self.words.frequencies[content] + _SMALLEST)
        return (
            float(found / information[content].sum()),
            float(found / (likeliest + 0.1)),
            float(gain.mean()),
            strongest,
        )


def _sum_of_largest(values: np.ndarray, count: int) -> float:
    count = min(count, len(values))
    return float(np.partition(values, -count)[-count:].sum())
