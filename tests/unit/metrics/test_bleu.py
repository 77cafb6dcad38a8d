import math

import pytest

from captionlib.metrics.bleu import BleuStats, statistics


def stats(hypothesis: str, *references: str) -> BleuStats:
    return statistics(hypothesis.split(), [reference.split() for reference in references])


def test_counts_by_hand() -> None:
    assert stats("a dog runs", "a dog runs fast") == BleuStats((3, 2, 1, 0), (3, 2, 1, 0), 3, 4)


def test_matches_are_clipped_at_the_reference_that_has_most() -> None:
    assert stats("the the the", "the cat", "the the dog").num_matches == (2, 1, 0, 0)


@pytest.mark.parametrize(
    ("hypothesis", "references", "length"),
    [
        ("a a a", ["b", "b b b b"], 4),  # one off beats two off
        ("a a a", ["b b b b", "b b"], 2),  # of two as close, the shorter
        ("", ["b b", "b"], 1),
    ],
)
def test_the_closest_reference_length_counts(hypothesis: str, references: list[str], length: int) -> None:
    assert stats(hypothesis, *references).reference_length == length


def test_score_by_hand() -> None:
    # "a dog runs" of "a dog runs fast": all precisions 1, brevity penalty exp(1 - 4/3).
    scores = stats("a dog runs", "a dog runs fast").score()
    assert scores[:3] == pytest.approx([math.exp(-1 / 3)] * 3)
    # No 4-grams: the constants 1e-15 and 1e-9 give a precision of 1e-6, and its fourth root is not 0.
    assert scores[3] == pytest.approx(1e-6 ** (1 / 4) * math.exp(-1 / 3))


def test_precisions_multiply() -> None:
    # Unigrams 3 of 4, bigrams 2 of 3; not shorter, so no penalty.
    scores = stats("a dog runs home", "a dog runs fast").score()
    assert scores[:2] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 2 / 3)])


def test_an_exact_caption_scores_1_and_an_empty_one_0() -> None:
    assert stats("a dog runs fast", "a dog runs fast").score() == pytest.approx([1] * 4)
    assert stats("", "a dog").score() == pytest.approx([0] * 4)


def test_statistics_add_up_before_they_are_scored() -> None:
    merged = stats("a dog", "a dog") + stats("b", "c c")
    assert merged == BleuStats((2, 1, 0, 0), (3, 1, 0, 0), 3, 4)
    assert merged.score()[0] == pytest.approx(2 / 3 * math.exp(1 - 4 / 3))
    assert sum([merged], BleuStats()) == merged
