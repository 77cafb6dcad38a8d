"""BLEU-1 to BLEU-4 (Papineni et al. 2002), from counts that are added up over captions.

The scores equal those of pycocoevalcap's `BleuScorer` with the closest reference length and its constants.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from captionlib.metrics.base import Label, Metric, MetricScores
from captionlib.metrics.ngrams import Ngram, Tokens, count_ngrams

MAX_ORDER = 4
# Keep quotients finite where a caption has no n-grams; part of the published numbers.
_SMALL = 1e-9
_TINY = 1e-15


@dataclass(frozen=True)
class BleuStats:
    """Counts of one caption or, after addition, of a corpus."""

    num_matches: tuple[int, ...] = (0,) * MAX_ORDER
    """Matching n-grams of orders 1 to 4, each clipped to its largest count in any reference."""
    num_ngrams: tuple[int, ...] = (0,) * MAX_ORDER
    """N-grams of the caption, of orders 1 to 4."""
    hypothesis_length: int = 0
    """In words."""
    reference_length: int = 0
    """Of the reference whose length is closest to the caption's."""

    def __add__(self, other: BleuStats) -> BleuStats:
        return BleuStats(
            tuple(a + b for a, b in zip(self.num_matches, other.num_matches, strict=True)),
            tuple(a + b for a, b in zip(self.num_ngrams, other.num_ngrams, strict=True)),
            self.hypothesis_length + other.hypothesis_length,
            self.reference_length + other.reference_length,
        )

    def score(self) -> tuple[float, float, float, float]:
        """BLEU-1 to BLEU-4 in [0, 1]: geometric mean of the n-gram precisions × brevity penalty."""
        ratio = (self.hypothesis_length + _TINY) / (self.reference_length + _SMALL)
        brevity_penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        product = 1.0
        scores = [0.0] * MAX_ORDER
        for order, (matches, ngrams) in enumerate(zip(self.num_matches, self.num_ngrams, strict=True), 1):
            product *= (matches + _TINY) / (ngrams + _SMALL)
            scores[order - 1] = product ** (1 / order) * brevity_penalty
        return scores[0], scores[1], scores[2], scores[3]


def statistics(hypothesis: Tokens, references: Sequence[Tokens]) -> BleuStats:
    """Return the counts of one caption for BLEU."""
    most: Counter[Ngram] = Counter()
    for reference in references:
        most |= count_ngrams(reference, MAX_ORDER)
    matches = [0] * MAX_ORDER
    for ngram, count in count_ngrams(hypothesis, MAX_ORDER).items():
        matches[len(ngram) - 1] += min(count, most[ngram])
    length = len(hypothesis)
    return BleuStats(
        tuple(matches),
        tuple(max(0, length - order) for order in range(MAX_ORDER)),
        length,
        min((len(reference) for reference in references), key=lambda other: (abs(other - length), other)),
    )


def _score(images: Sequence[BleuStats]) -> MetricScores:
    return MetricScores(sum(images, BleuStats()).score(), [image.score() for image in images])


METRIC = Metric(
    labels={f"bleu_{order}": Label(f"BLEU-{order}") for order in range(1, MAX_ORDER + 1)},
    signature="bleu:corpus,closest",
    statistics=statistics,
    score=_score,
)
"""Computed on the corpus; this is not the mean over the images."""
