from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.outputs.id_ranges import IdRange, cut, merge, subtract, total, without_covered


def ranges(*pairs: tuple[int, int]) -> list[IdRange]:
    return [IdRange(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("planned", "finished", "left"),
    [
        ([(0, 9)], [], [(0, 9)]),
        ([(0, 9)], [(0, 9)], []),
        ([(0, 9)], [(0, 4)], [(5, 9)]),
        ([(0, 9)], [(5, 9)], [(0, 4)]),
        ([(0, 9)], [(3, 5)], [(0, 2), (6, 9)]),
        ([(0, 9)], [(0, 0), (2, 2), (9, 9)], [(1, 1), (3, 8)]),
        ([(0, 9)], [(7, 7), (1, 2), (2, 3)], [(0, 0), (4, 6), (8, 9)]),
        ([(0, 3), (10, 13)], [(2, 11)], [(0, 1), (12, 13)]),
        ([(0, 3)], [(2, 50)], [(0, 1)]),
        ([(0, -1)], [], []),  # an empty manifest
    ],
)
def test_subtract(planned, finished, left):
    assert subtract(ranges(*planned), ranges(*finished)) == ranges(*left)


def test_merge_joins_neighbours_but_not_over_a_gap():
    assert merge(ranges((4, 6), (0, 1), (2, 3), (8, 9))) == ranges((0, 6), (8, 9))


def test_cut_keeps_each_range_apart():
    assert list(cut(ranges((0, 6), (10, 11)), 3)) == ranges((0, 2), (3, 5), (6, 6), (10, 11))


def test_a_range_inside_another_is_a_leftover():
    kept, covered = without_covered(ranges((0, 4), (5, 9), (0, 9), (10, 12), (3, 4)))
    assert (kept, covered) == (ranges((0, 9), (10, 12)), ranges((0, 4), (3, 4), (5, 9)))


def test_a_partial_overlap_is_refused():
    with pytest.raises(ValueError, match="0-4 and 3-9 overlap"):
        without_covered(ranges((0, 4), (3, 9)))


some_ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=8).map(
    lambda pairs: [IdRange(first, first + more) for first, more in pairs]
)


@given(some_ranges, some_ranges)
def test_subtract_is_the_difference_of_sets(planned, finished):
    def ids(items):
        return {i for r in items for i in range(r.first, r.last + 1)}

    left = subtract(planned, finished)
    assert ids(left) == ids(planned) - ids(finished)
    assert total(left) == len(ids(left))
    assert left == merge(left)
