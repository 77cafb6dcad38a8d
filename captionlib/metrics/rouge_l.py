"""ROUGE-L (Lin 2004, section 3), the mean F-measure of the longest common subsequences.

The scores equal those of pycocoevalcap's `Rouge`: beta = 1.2, best precision and best recall of any reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from captionlib.metrics.base import Label, Metric, MetricScores
from captionlib.metrics.ngrams import Tokens

BETA = 1.2
"""Weight of recall relative to precision."""


@dataclass(frozen=True)
class RougeLStats:
    """Sum for one caption or, after addition, for a corpus."""

    total: float = 0.0
    """Sum of the F-measures of the captions."""
    num_captions: int = 0

    def __add__(self, other: RougeLStats) -> RougeLStats:
        return RougeLStats(self.total + other.total, self.num_captions + other.num_captions)

    def score(self) -> float:
        """Mean F-measure in [0, 1]; 0 of no captions."""
        return self.total / self.num_captions if self.num_captions else 0.0


def statistics(hypothesis: Tokens, references: Sequence[Tokens]) -> RougeLStats:
    """Return the sum of one caption for ROUGE-L."""
    # An empty caption counts as one empty word, as in the original: so it equals an empty reference.
    words = hypothesis or [""]
    precision = recall = 0.0
    for reference in references:
        common = lcs_length(words, reference or [""])
        precision = max(precision, common / len(words))
        recall = max(recall, common / (len(reference) or 1))
    if precision == 0 or recall == 0:
        return RougeLStats(0.0, 1)
    return RougeLStats((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision), 1)


def lcs_length(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence (bit-parallel: Hyyrö 2004, "Bit-parallel LCS-length")."""
    positions: dict[str, int] = {}
    for index, word in enumerate(left):
        positions[word] = positions.get(word, 0) | 1 << index
    everywhere = (1 << len(left)) - 1
    # Bit i is 0 if the subsequence becomes longer when the i-th word is added to the prefix of `left`.
    row = everywhere
    for word in right:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & everywhere
    return len(left) - row.bit_count()


def _score(images: Sequence[RougeLStats]) -> MetricScores:
    return MetricScores([sum(images, RougeLStats()).score()], [[image.score()] for image in images])


METRIC = Metric(
    labels={"rouge_l": Label("ROUGE-L")}, signature=f"rouge_l:beta{BETA}", statistics=statistics, score=_score
)
"""The mean over the images, in [0, 1]."""
