"""Losses: a decoder's logits and the captions that they should have been → sums and counts.

Sums and counts, not means, so that workers whose captions differ in length merge by addition.

Shapes: B images, K captions per image, M words to predict, N positions, V words in the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossSums:
    """What one batch adds to the loss."""

    objective: Tensor
    """Scalar with gradient: what training minimises, summed over words (label smoothing included)."""
    cross_entropy: Tensor
    """Scalar: the sum of -log p(word), natural log, without smoothing."""
    num_words: int
    """Words predicted, `<eos>` among them."""


def caption_loss(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    taught: Tensor | None = None,
    teacher_share: float = 0.0,
    weights: Tensor | None = None,
) -> LossSums:
    """Cross-entropy of the next word.

    Args:
        logits: (M, V), a row per word to be predicted.
        targets: (M,) int64.
        label_smoothing: share of the probability that goes to all words alike (Szegedy et al. 2016, section 7).
        taught: (M, V) the probabilities that teachers give the words (see `captionlib.training.distillation`).
        teacher_share: share of the objective that is cross-entropy with these.
        weights: (M,) float, what each word counts in the objective; default: 1.
    """
    log_probs = logits.float().log_softmax(dim=-1)  # once for both sums: over a vocabulary it is what a loss costs
    cross_entropy = F.nll_loss(log_probs, targets, reduction="none")  # (M,)
    objective = cross_entropy
    if label_smoothing:
        spread = -log_probs.mean(dim=-1)
        objective = (1 - label_smoothing) * cross_entropy + label_smoothing * spread
    if taught is not None:
        objective = (1 - teacher_share) * objective - teacher_share * (taught * log_probs).sum(dim=-1)
    if weights is not None:
        objective = objective * weights
    return LossSums(objective.sum(), cross_entropy.detach().sum(), targets.numel())


def doubly_stochastic_penalty(attention: Tensor) -> Tensor:
    """Sum over captions of Σ_i (1 - Σ_t α_ti)²: every place should be looked at about once (Xu et al. 2015, eq. 14).

    Args:
        attention: weights summed over each caption's words (B, K, N); a missing caption's are all 0.
    """
    exists = attention.detach().sum(dim=-1, keepdim=True) > 0  # (B, K, 1)
    return ((1 - attention) ** 2 * exists).sum()
