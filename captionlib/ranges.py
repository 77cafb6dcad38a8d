"""Checks that numbers of settings are in their ranges, with one wording of the messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from captionlib.errors import UserError


class Range(NamedTuple):
    """Numbers that a setting accepts. NaN is in no range."""

    text: str
    """Completes the sentence "the setting must …"."""
    contains: Callable[[float], bool]


POSITIVE = Range("be positive", lambda value: value > 0)
NOT_NEGATIVE = Range("not be negative", lambda value: value >= 0)
SHARE = Range("be in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("be in [0, 1)", lambda value: 0 <= value < 1)
ABOVE_ZERO = Range("be in (0, 1]", lambda value: 0 < value <= 1)


def at_least(smallest: int) -> Range:
    """Return the range of the numbers from `smallest` on."""
    return Range(f"be at least {smallest}", lambda value: value >= smallest)


def check_ranges(settings: object, prefix: str, **ranges: Range) -> None:
    """Check attributes of a settings object. An attribute that is None was not set, and passes.

    Args:
        prefix: precedes the names in messages: `--` for flags, which are written with hyphens, or a group such as
            `optimizer.`.
        ranges: the range of each attribute, by its name.

    Raises:
        UserError: a number is outside its range; the message states the name, the range and the number.
    """
    for name, accepted in ranges.items():
        value: Any = getattr(settings, name)
        if value is not None and not accepted.contains(value):
            shown = f"--{name.replace('_', '-')}" if prefix == "--" else f"{prefix}{name}"
            raise UserError(f"{shown} must {accepted.text}, got {value}")
