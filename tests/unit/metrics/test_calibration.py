"""The area under the ROC curve and reliability, on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from captionlib.metrics.calibration import area_under_roc, expected_calibration_error, reliability


def test_area_under_roc_by_hand() -> None:
    # Of the pairs of a right and a wrong one: .9 beats .8 and .1, .5 beats .1 alone: 3 of 4.
    assert area_under_roc([0.9, 0.8, 0.5, 0.1], [True, False, True, False]) == pytest.approx(0.75)
    assert area_under_roc([1, 2, 3], [False, True, True]) == 1
    assert area_under_roc([3, 2, 1], [False, True, True]) == 0
    assert area_under_roc([5, 5, 5], [False, True, True]) == 0.5
    assert area_under_roc([2, 2, 1], [True, False, False]) == 0.75  # a tie counts one half


def test_area_under_roc_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 8, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[right] for b in scores[~right]]
    assert area_under_roc(scores, right) == pytest.approx(float(np.mean(pairs)))


def test_area_under_roc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="3 are right and 0 wrong"):
        area_under_roc([1, 2, 3], [True, True, True])


def test_reliability_by_hand() -> None:
    first, second = reliability([0.2, 0.4, 0.6, 1.0], [False, True, True, True], num_bins=2)
    assert first[:3] == (0.0, 0.5, 2)
    assert (first.mean, first.share_right) == pytest.approx((0.3, 0.5))
    assert second[:3] == (0.5, 1.0, 2)
    assert (second.mean, second.share_right) == pytest.approx((0.8, 1.0))
    # Half of them are off by .2, the other half by .2 as well.
    assert expected_calibration_error([0.2, 0.4, 0.6, 1.0], [False, True, True, True], 2) == pytest.approx(0.2)


def test_an_empty_bin_counts_nothing() -> None:
    empty = reliability([0.9], [True], num_bins=2)[0]
    assert empty.num_captions == 0
    assert math.isnan(empty.mean)
    assert expected_calibration_error([0.9], [True], 2) == pytest.approx(0.1)
