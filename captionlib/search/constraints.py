"""Constraints of a search: set the log-probability of forbidden words to -inf.

Shapes: R rows, V words, L words so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.devices import constant
from captionlib.vocabulary import BOS, EOS, PAD, UNK


class Constraints:
    """The constraints of the settings: special words, minimum length, repeated n-grams, maximum length."""

    def __init__(self, config: SearchConfig, device: torch.device) -> None:
        self.config = config
        never = (PAD, BOS) if config.allow_unk else (PAD, BOS, UNK)
        self.never = constant(never, device)
        self.never_early = constant((*never, EOS), device)

    def __call__(self, log_probs: Tensor, tokens: Tensor, position: int) -> Tensor:
        """Log-probabilities (R, V) of the word at `position` (0 is the first), behind `<bos>` words (R, 1 + L)."""
        if position == self.config.max_tokens:
            # There is no room for another word, so only the end is allowed, with its own log-probability.
            only_end = torch.full_like(log_probs, -torch.inf)
            only_end[:, EOS] = log_probs[:, EOS]
            return only_end
        early = position < self.config.min_tokens
        log_probs = log_probs.index_fill(1, self.never_early if early else self.never, -torch.inf)
        order = self.config.no_repeat_ngram
        if order and position >= order:
            forbid_repeats(log_probs, tokens[:, 1:], order)
        return log_probs


def forbid_repeats(log_probs: Tensor, words: Tensor, order: int) -> None:
    """Set to -inf, in place, each word that would complete an n-gram of its row (Paulus et al. 2018, section 2.5).

    Args:
        log_probs: (R, V); that of `<pad>` becomes -inf too.
        words: (R, L) int64, L at least `order`.
        order: n.
    """
    ngrams = words.unfold(1, order, 1)  # (R, L - n + 1, n)
    prefix = words[:, words.shape[1] - order + 1 :]  # (R, n - 1) the words that the next one would join
    repeats = (ngrams[..., :-1] == prefix.unsqueeze(1)).all(dim=-1)  # (R, L - n + 1)
    log_probs.scatter_(1, torch.where(repeats, ngrams[..., -1], PAD), -torch.inf)
