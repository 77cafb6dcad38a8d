"""Turns exceptions into short texts, for the batch jobs and for training."""

from __future__ import annotations

import re
import traceback

FOLDER = "failures"
"""Name of the folder for tracebacks, in the output of a batch job and in the folder of a training run."""


def last_line(error: BaseException) -> str:
    """Return the last line of the text of an exception, with its type."""
    lines = [line.strip() for line in traceback.format_exception_only(error) if line.strip()]
    text = (lines[-1].splitlines() or [""])[-1] if lines else ""
    name = type(error).__name__
    return (text if name in text else f"{name}: {text}")[:500]


def without_numbers(text: str) -> str:
    """Replace the numbers in an error message, such as addresses or free bytes, so that repeated errors compare
    equal.
    """
    return re.sub(r"0x[0-9a-f]+|[\d.]+", "#", text)
