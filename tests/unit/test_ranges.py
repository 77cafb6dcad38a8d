from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from captionlib.errors import UserError
from captionlib.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, Range, at_least, check_ranges


@pytest.mark.parametrize(
    ("accepted", "good", "bad"),
    [
        (POSITIVE, [1e-9, 3], [0, -1, math.nan]),
        (NOT_NEGATIVE, [0, 3], [-1e-9, math.nan]),
        (SHARE, [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        (BELOW_ONE, [0, 0.99], [1, -0.1]),
        (ABOVE_ZERO, [0.01, 1], [0, 1.1]),
        (at_least(2), [2, 9], [1, math.nan]),
    ],
)
def test_ranges_with_their_ends(accepted: Range, good: list[float], bad: list[float]) -> None:
    assert [value for value in [*good, *bad] if accepted.contains(value)] == good


def test_the_message_has_the_flag_the_range_and_the_value() -> None:
    settings = SimpleNamespace(batch_size=0, share=2.0, unset=None)
    with pytest.raises(UserError, match=r"^--batch-size must be at least 1, got 0$"):
        check_ranges(settings, "--", batch_size=at_least(1))
    with pytest.raises(UserError, match=r"^group\.share must be in \[0, 1\], got 2\.0$"):
        check_ranges(settings, "group.", share=SHARE)
    check_ranges(settings, "--", unset=POSITIVE)
