"""Diversity and completeness of captions, which reference-based metrics do not measure.

A captioner that describes every dog as "a dog runs through the grass" scores well, and one trained on CIDEr-D may break
off in the middle of a phrase. These numbers show both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from captionlib.metrics.ngrams import Tokens

# Articles, possessives, numerals, conjunctions, auxiliaries, transitive participles, and prepositions that
# seldom end a relative clause. Each ends fewer than 1 in 2,000 of Flickr8k's captions; "on", "by", "behind",
# "her" and "another" do so more often ("a bench to sit on").
_DANGLING_WORDS = """
    a an the this these my your our his its their some several two three
    of with in to at for from into onto near under beside between through over next
    and or but while as that which who whose where
    is are was were be being has have wearing holding
"""
DANGLING_WORDS = frozenset(_DANGLING_WORDS.split())
"""Words that require another word after them: a caption that ends in one is incomplete."""


@dataclass(frozen=True)
class Diversity:
    """Statistics of a set of captions. Shares are in [0, 1]; all values are 0 without captions."""

    num_captions: int
    num_distinct: int
    """Number of different captions."""
    vocabulary_used: int
    """Number of different words."""
    mean_length: float
    """In words."""
    share_dangling: float
    """Captions whose last word wants another one (`DANGLING_WORDS`), and empty captions."""
    share_from_training: float | None
    """Captions that stand word for word among the training captions; None where those were not given."""


@dataclass
class DiversityStats:
    """Statistics of one caption or, after addition, of a corpus."""

    captions: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Count of each tokenised caption."""

    def __add__(self, other: DiversityStats) -> DiversityStats:
        merged = DiversityStats(Counter(self.captions))
        merged += other
        return merged

    def __iadd__(self, other: DiversityStats) -> DiversityStats:
        self.captions.update(other.captions)
        return self

    def score(self, training_captions: Set[tuple[str, ...]] | None = None) -> Diversity:
        """Compute the statistics.

        Args:
            training_captions: tokenised captions of the training set.
        """
        num_captions = self.captions.total()
        words = sum(len(caption) * count for caption, count in self.captions.items())
        dangling = sum(
            count for caption, count in self.captions.items() if not caption or caption[-1] in DANGLING_WORDS
        )
        seen = None
        if training_captions is not None:
            seen = sum(count for caption, count in self.captions.items() if caption in training_captions)
        return Diversity(
            num_captions=num_captions,
            num_distinct=len(self.captions),
            vocabulary_used=len(set().union(*self.captions)),
            mean_length=words / (num_captions or 1),
            share_dangling=dangling / (num_captions or 1),
            share_from_training=None if seen is None else seen / (num_captions or 1),
        )


def statistics(hypotheses: Iterable[Tokens]) -> DiversityStats:
    """Return the statistics of tokenised captions."""
    return DiversityStats(Counter(tuple(hypothesis) for hypothesis in hypotheses))
