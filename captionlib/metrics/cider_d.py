"""CIDEr-D (Vedantam et al. 2015, section 6): agreement of captions with their references in weighted n-grams.

The scores equal those of pycocoevalcap's `Cider` (n = 4, sigma = 6, no stemming), the CIDEr of the field. An n-gram's
weight depends on the number of images whose references contain it, so counts of the whole corpus are needed first.
`CiderDStats` collects them; `CiderD` takes them from a training set, as the reward of self-critical training (Rennie et
al. 2017).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captionlib.metrics.base import Label, Metric, MetricScores
from captionlib.metrics.ngrams import Ngram, Tokens, count_ngrams
from captionlib.vocabulary import EOS, SPECIAL_WORDS

MAX_ORDER = 4
SIGMA = 6.0
"""Standard deviation, in bigrams, of the penalty on a caption's length."""
EOS_WORD = SPECIAL_WORDS[EOS]


@dataclass
class CiderDStats:
    """Counts of one caption or, after addition, of a corpus."""

    captions: list[tuple[Counter[Ngram], tuple[Counter[Ngram], ...]]] = field(default_factory=list)
    """For each image, the n-grams of its caption and of each reference."""
    document_frequency: Counter[Ngram] = field(default_factory=Counter)
    """For each n-gram, the number of images with a reference that contains it."""

    def __add__(self, other: CiderDStats) -> CiderDStats:
        merged = CiderDStats(list(self.captions), Counter(self.document_frequency))
        merged += other
        return merged

    def __iadd__(self, other: CiderDStats) -> CiderDStats:
        self.captions.extend(other.captions)
        self.document_frequency.update(other.document_frequency)
        return self

    def image_scores(self) -> list[float]:
        """CIDEr-D of each image's caption, at most 10, in the order in which they were added."""
        weights = _Weights(self.document_frequency, len(self.captions))
        return [
            weights.agreement(weights.vector(hypothesis), [weights.vector(counts) for counts in references])
            for hypothesis, references in self.captions
        ]

    def score(self) -> float:
        """Return the mean over the images, at most 10; 0 without images. A single image scores 0, because no n-gram
        is rare.
        """
        return math.fsum(self.image_scores()) / len(self.captions) if self.captions else 0.0


def statistics(hypothesis: Tokens, references: Sequence[Tokens]) -> CiderDStats:
    """Return the counts of one caption for CIDEr-D."""
    counts = tuple(count_ngrams(reference, MAX_ORDER) for reference in references)
    return CiderDStats([(count_ngrams(hypothesis, MAX_ORDER), counts)], Counter(set().union(*counts)))


def _score(images: Sequence[CiderDStats]) -> MetricScores:
    whole = CiderDStats()
    for image in images:
        whole += image
    scores = whole.image_scores()
    return MetricScores([sum(scores) / len(scores)], [[score] for score in scores])


METRIC = Metric(
    labels={"cider_d": Label("CIDEr-D", in_percent=False)},
    signature=f"cider_d:n{MAX_ORDER},sigma{SIGMA:g},df:corpus",
    statistics=statistics,
    score=_score,
)
"""The mean over the images, in [0, 10], with the document frequencies of the whole corpus. About 1 for good captions of
COCO, 0.5 for moderate captions of Flickr8k."""


class CiderD:
    """Scores captions of images whose references are known beforehand.

    Holds the references as words, and the weight of every n-gram that two images share: about 20 MB for
    Flickr8k's 30,000 training captions. Can be pickled and sent to workers. 250 captions take about 30 ms.

    Args:
        references: for each image (by any key) its tokenised references.
        document_frequency: for each n-gram the number of images with a reference that has it; one that is
            missing counts as 1.
        num_images: how many images the document frequencies were counted over.
    """

    def __init__(
        self,
        references: Mapping[Any, Sequence[Tokens]],
        document_frequency: Mapping[Ngram, int],
        num_images: int,
    ) -> None:
        self.references = references
        self._weights = _Weights(document_frequency, num_images)

    @classmethod
    def from_references(
        cls,
        references: Mapping[Any, Sequence[Tokens]] | Sequence[Sequence[Tokens]],
        *,
        eos: bool = False,
    ) -> CiderD:
        """A scorer with the references' own document frequencies.

        Args:
            references: for each image its tokenised references; a sequence has its positions as keys.
            eos: end every reference with the word `<eos>`, so that n-grams tell whether a caption ends well.
                Hypotheses must then hold `<eos>` where the model said so. Without it a model that is rewarded
                learns to break off in the middle ("a dog on a").
        """
        items = references.items() if isinstance(references, Mapping) else enumerate(references)
        ending = [EOS_WORD] if eos else []
        by_key: dict[Hashable, Sequence[Tokens]] = {
            key: [[*reference, *ending] for reference in image_references] for key, image_references in items
        }
        document_frequency: Counter[Ngram] = Counter()
        for image_references in by_key.values():
            document_frequency.update(
                set().union(*(count_ngrams(reference, MAX_ORDER) for reference in image_references))
            )
        # An n-gram that occurs in one image has the same weight as an unknown one, so most n-grams need not be kept.
        shared = {ngram: count for ngram, count in document_frequency.items() if count > 1}
        return cls(by_key, shared, len(by_key))

    def score_many(self, hypotheses: Iterable[Tokens], keys: Iterable[Hashable]) -> np.ndarray:
        """CIDEr-D of each caption against the references of the image of the same place in `keys`.

        Returns:
            float64 (number of hypotheses,), each in [0, 10].

        Raises:
            KeyError: an image without references.
            ValueError: as many keys as hypotheses are needed.
        """
        weights = self._weights
        vectors: dict[Hashable, list[_Vector]] = {}
        scores = []
        for hypothesis, key in zip(hypotheses, keys, strict=True):
            if key not in vectors:
                vectors[key] = [
                    weights.vector(count_ngrams(reference, MAX_ORDER)) for reference in self.references[key]
                ]
            scores.append(weights.agreement(weights.vector(count_ngrams(hypothesis, MAX_ORDER)), vectors[key]))
        return np.array(scores, dtype=np.float64)


@dataclass(frozen=True)
class _Vector:
    """A caption as weighted n-grams."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    """Euclidean norm for each order."""
    num_bigrams: int
    """Number of bigrams, by which the original implementation measures length."""


class _Weights:
    """Inverse document frequencies, and what is computed with them."""

    def __init__(self, document_frequency: Mapping[Ngram, int], num_images: int) -> None:
        self._log_images = math.log(num_images) if num_images else 0.0
        self._idf = {
            ngram: self._log_images - math.log(count) for ngram, count in document_frequency.items() if count > 1
        }

    def vector(self, counts: Mapping[Ngram, int]) -> _Vector:
        weights: dict[Ngram, float] = {}
        squares = [0.0] * MAX_ORDER
        num_bigrams = 0
        for ngram, count in counts.items():
            order = len(ngram)
            weight = weights[ngram] = count * self._idf.get(ngram, self._log_images)
            squares[order - 1] += weight * weight
            if order == 2:
                num_bigrams += count
        return _Vector(weights, tuple(map(math.sqrt, squares)), num_bigrams)

    def agreement(self, hypothesis: _Vector, references: Sequence[_Vector]) -> float:
        """Ten times the mean, over references and orders, of the clipped cosine × length penalty."""
        total = 0.0
        for reference in references:
            products = [0.0] * MAX_ORDER
            theirs = reference.weights
            for ngram, weight in hypothesis.weights.items():
                other = theirs.get(ngram)
                if other is not None:
                    products[len(ngram) - 1] += min(weight, other) * other
            cosines = sum(
                product / (own * other)
                for product, own, other in zip(products, hypothesis.norms, reference.norms, strict=True)
                if own and other
            )
            difference = hypothesis.num_bigrams - reference.num_bigrams
            total += cosines * math.exp(-(difference**2) / (2 * SIGMA**2))
        return 10 * total / (MAX_ORDER * len(references))
