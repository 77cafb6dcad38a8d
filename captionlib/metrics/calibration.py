"""Metrics of predicted probabilities: ranking, calibration error, and a reliability diagram as rows.

M predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from captionlib.errors import UserError


class ReliabilityBin(NamedTuple):
    """Predictions between two probabilities. A reliability diagram draws `share_right` over `mean`."""

    low: float
    high: float
    num_captions: int
    """Number of predictions at or above `low` and below `high`; the last bin includes `high`."""
    mean: float
    """Mean predicted probability; NaN if there is none."""
    share_right: float
    """Share of the predictions that came true; NaN if there is none."""


def area_under_roc(scores: ArrayLike, is_right: ArrayLike) -> float:
    """Return the probability that a right one scores higher than a wrong one; ties count one half.

    The Mann-Whitney U statistic, normalised (Fawcett 2006, section 7).

    Args:
        scores: (M,) floats; higher means more probably right.
        is_right: (M,) booleans.

    Raises:
        UserError: all are right, or all are wrong, so that there is nothing to compare.
    """
    values, right = np.asarray(scores, float), np.asarray(is_right, bool)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if not num_right or not num_wrong:
        raise UserError(f"{num_right} are right and {num_wrong} wrong: the area under the ROC curve needs both")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[place]  # ranks from 1; equal scores share theirs
    return float((mean_rank[right].sum() - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def reliability(probabilities: ArrayLike, is_right: ArrayLike, num_bins: int = 10) -> list[ReliabilityBin]:
    """Group predictions into bins of equal width.

    Args:
        probabilities: (M,) in [0, 1].
        is_right: (M,) booleans.
        num_bins: number of bins between 0 and 1.
    """
    values, right = np.asarray(probabilities, float), np.asarray(is_right, bool)
    which = np.minimum((values * num_bins).astype(int), num_bins - 1)
    bins = []
    for number in range(num_bins):
        here = which == number
        found = bool(here.any())
        mean = float(values[here].mean()) if found else float("nan")
        share = float(right[here].mean()) if found else float("nan")
        bins.append(ReliabilityBin(number / num_bins, (number + 1) / num_bins, int(here.sum()), mean, share))
    return bins


def expected_calibration_error(probabilities: ArrayLike, is_right: ArrayLike, num_bins: int = 10) -> float:
    """Return the mean distance between predicted probability and share of right ones, in [0, 1] (Guo et al. 2017,
    equation 5)."""
    bins = [found for found in reliability(probabilities, is_right, num_bins) if found.num_captions]
    total = sum(found.num_captions for found in bins)
    return sum(found.num_captions * abs(found.mean - found.share_right) for found in bins) / total
