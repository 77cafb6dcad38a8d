"""Counts the n-grams of tokenised captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
Ngram = tuple[str, ...]


def count_ngrams(tokens: Tokens, max_order: int = 4) -> Counter[Ngram]:
    """Count each n-gram of orders 1 to `max_order`."""
    words = tuple(tokens)
    return Counter(
        words[start : start + order] for order in range(1, max_order + 1) for start in range(len(words) - order + 1)
    )
