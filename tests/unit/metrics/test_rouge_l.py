import pytest
from hypothesis import given
from hypothesis import strategies as st

from captionlib.metrics.rouge_l import RougeLStats, lcs_length, statistics


def score(hypothesis: str, *references: str) -> float:
    return statistics(hypothesis.split(), [reference.split() for reference in references]).score()


def test_by_hand() -> None:
    # Common subsequence "a c d": precision 3/4, recall 1; (1 + 1.44) PR / (R + 1.44 P).
    assert score("a b c d", "a c d") == pytest.approx(2.44 * 0.75 / (1 + 1.44 * 0.75))


def test_precision_and_recall_may_come_from_different_references() -> None:
    # Precision 1 from the long reference, recall 1 from the short one.
    assert score("a b", "a b c d e f", "b") == pytest.approx(1)


def test_nothing_in_common_is_0() -> None:
    assert score("a b", "c d") == 0
    assert score("", "c d") == 0


def test_empty_equals_empty_as_in_the_original() -> None:
    assert score("", "") == 1


def test_the_mean_over_captions() -> None:
    merged = statistics(["a"], [["a"]]) + statistics(["a"], [["b"]])
    assert merged == RougeLStats(1.0, 2)
    assert merged.score() == 0.5
    assert RougeLStats().score() == 0


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_common_subsequence_equals_the_textbook_table(left: str, right: str) -> None:
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(list(left), list(right)) == table[-1][-1]
