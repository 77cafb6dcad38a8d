"""Ranges of image ids: which images are finished and which remain, without storing one id per image.

A range includes both ends, as in the names of the output files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class IdRange(NamedTuple):
    """Image ids from `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.last - self.first + 1

    def covers(self, other: IdRange) -> bool:
        """Whether this range contains every id of `other`."""
        return self.first <= other.first and other.last <= self.last


def merge(ranges: Iterable[IdRange]) -> list[IdRange]:
    """Return the same ids as few ascending ranges; overlapping and adjacent ranges are joined."""
    merged: list[IdRange] = []
    for here in sorted(ranges):
        if merged and here.first <= merged[-1].last + 1:
            merged[-1] = IdRange(merged[-1].first, max(merged[-1].last, here.last))
        else:
            merged.append(here)
    return merged


def subtract(planned: Iterable[IdRange], finished: Iterable[IdRange]) -> list[IdRange]:
    """Return the ids of `planned` that are not in `finished`, as ascending ranges."""
    left: list[IdRange] = []
    done = merge(finished)
    start = 0  # finished ranges before this one end before the planned range begins
    for here in merge(planned):
        first = here.first
        while start < len(done) and done[start].last < first:
            start += 1
        for hole in done[start:]:
            if hole.first > here.last:
                break
            if hole.first > first:
                left.append(IdRange(first, hole.first - 1))
            first = hole.last + 1
        if first <= here.last:
            left.append(IdRange(first, here.last))
    return left


def cut(ranges: Iterable[IdRange], size: int) -> Iterator[IdRange]:
    """Cut each range into chunks of at most `size` ids."""
    for here in ranges:
        for first in range(here.first, here.last + 1, size):
            yield IdRange(first, min(first + size - 1, here.last))


def without_covered(ranges: Iterable[IdRange]) -> tuple[list[IdRange], list[IdRange]]:
    """Separate the ranges that lie inside another range, which remain after an interrupted merge.

    Returns:
        (kept, covered), both ascending.

    Raises:
        ValueError: two ranges overlap and neither covers the other.
    """
    kept: list[IdRange] = []
    covered: list[IdRange] = []
    for here in sorted(set(ranges), key=lambda r: (r.first, -r.last)):
        if kept and kept[-1].covers(here):
            covered.append(here)
        elif kept and here.first <= kept[-1].last:
            raise ValueError(f"ids {kept[-1].first}-{kept[-1].last} and {here.first}-{here.last} overlap")
        else:
            kept.append(here)
    return kept, covered


def total(ranges: Iterable[IdRange]) -> int:
    """Count the ids in disjoint ranges."""
    return sum(here.size for here in ranges)
