"""Losses of a decoder's logits, as sums and counts.

Sums and counts rather than means, so that workers whose captions differ in length are merged by addition.

Shapes: B images, K captions per image, M words to predict, N positions, V words in the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossSums:
    """Sums of one batch."""

    objective: Tensor
    """Scalar with gradient: what training minimises, summed over words (label smoothing included)."""
    cross_entropy: Tensor
    """Scalar: the sum of -log p(word), natural log, without smoothing."""
    num_words: int
    """Number of words predicted, including `<eos>`."""


def caption_loss(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    teacher_probs: Tensor | None = None,
    teacher_share: float = 0.0,
    weights: Tensor | None = None,
) -> LossSums:
    """Cross-entropy of the next word.

    Args:
        logits: (M, V), one row per word to predict.
        targets: (M,) int64.
        label_smoothing: share of the probability that is distributed evenly over all words (Szegedy et al. 2016,
            section
            7).
        teacher_probs: (M, V) probabilities of the teachers (see `captionlib.training.distillation`).
        teacher_share: share of the objective that is cross-entropy with these probabilities.
        weights: (M,) float, weight of each word in the objective; default: 1.
    """
    # Computed once for both sums, because it is the expensive part of the loss.
    log_probs = logits.float().log_softmax(dim=-1)
    cross_entropy = F.nll_loss(log_probs, targets, reduction="none")  # (M,)
    objective = cross_entropy
    if label_smoothing:
        spread = -log_probs.mean(dim=-1)
        objective = (1 - label_smoothing) * cross_entropy + label_smoothing * spread
    if teacher_probs is not None:
        objective = (1 - teacher_share) * objective - teacher_share * (teacher_probs * log_probs).sum(dim=-1)
    if weights is not None:
        objective = objective * weights
    return LossSums(objective.sum(), cross_entropy.detach().sum(), targets.numel())


def doubly_stochastic_penalty(attention: Tensor) -> Tensor:
    """Sum over captions of Σ_i (1 - Σ_t α_ti)², which encourages equal attention to all positions (Xu et al. 2015, eq.
    14).

    Args:
        attention: weights summed over the words of each caption (B, K, N); 0 for a missing caption.
    """
    exists = attention.detach().sum(dim=-1, keepdim=True) > 0  # (B, K, 1)
    return ((1 - attention) ** 2 * exists).sum()
