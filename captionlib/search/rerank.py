"""Re-ranking: orders the captions of a beam by a second opinion of their words.

Fang et al. 2015, section 5, re-rank the captions of a language model by features of the whole caption. Here there are
two: the score of the search, and the opinion of a word detector (`captionlib.word_detector`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from captionlib.config import SearchConfig
from captionlib.search.rows import Hypothesis, rank

Opinion = Callable[[Sequence[int]], float]
"""Word ids of a caption → how well they suit the image; more is better."""


def rerank(hypotheses: Sequence[Hypothesis], opinion: Opinion, config: SearchConfig) -> list[Hypothesis]:
    """Return the best `config.num_captions` hypotheses of an image, best first.

    The score is log-probability / length ** length_penalty + detector_weight * opinion.
    """

    def score(hypothesis: Hypothesis) -> float:
        length = max(len(hypothesis.tokens) + hypothesis.finished, 1)  # as the search counts, with <eos>
        return rank(hypothesis.log_prob, float(length), config) + config.detector_weight * opinion(hypothesis.tokens)

    return sorted(hypotheses, key=score, reverse=True)[: config.num_captions]
