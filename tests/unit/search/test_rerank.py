"""Re-ranking of a beam by a second opinion, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from captionlib.config import SearchConfig
from captionlib.errors import UserError
from captionlib.search import Hypothesis
from captionlib.search.rerank import rerank

BEST = Hypothesis((4, 5), -3.0, True)
SUITS = Hypothesis((4, 6), -3.3, True)
LONG = Hypothesis((4, 6, 6, 6, 6), -5.0, True)


def opinion(tokens: Sequence[int]) -> float:
    """Word 6 suits the image."""
    return -1.0 if 6 in tokens else -4.0


@pytest.mark.parametrize(
    ("weight", "penalty", "best"),
    [
        (0.0, 0.0, BEST),
        (0.05, 0.0, BEST),  # -3 - 0.2 against -3.3 - 0.05
        (0.2, 0.0, SUITS),  # -3 - 0.8 against -3.3 - 0.2
        (0.2, 1.0, LONG),  # -3 / 3 - 0.8, -3.3 / 3 - 0.2, and -5 / 6 - 0.2: <eos> counts
    ],
)
def test_the_score_is_that_of_the_search_and_the_opinion(weight: float, penalty: float, best: Hypothesis) -> None:
    config = SearchConfig(detector_weight=weight, length_penalty=penalty)
    assert rerank([BEST, SUITS, LONG], opinion, config) == [best]


def test_as_many_captions_as_were_asked_for() -> None:
    config = SearchConfig(detector_weight=0.2, num_captions=2)
    assert rerank([BEST, SUITS, LONG], opinion, config) == [SUITS, BEST]


def test_only_beams_are_reranked() -> None:
    assert SearchConfig(detector_weight=0.1).reranks
    assert not SearchConfig().reranks
    greedy = SearchConfig(method="greedy", detector_weight=0.1)
    assert not greedy.reranks
    assert greedy.effective() == SearchConfig(method="greedy")
    greedy.check_detector(exists=False)


def test_a_search_without_its_detector_says_what_to_do() -> None:
    SearchConfig(detector_weight=0.1).check_detector(exists=True)
    with pytest.raises(UserError, match=r"set it to 0, or add one with python -m jobs\.train_detector"):
        SearchConfig(detector_weight=0.1).check_detector(exists=False)
