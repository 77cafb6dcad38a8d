"""Texts of exceptions, shared by the batch jobs and by training."""

from __future__ import annotations

import re
import traceback

FOLDER = "failures"
"""Folder for tracebacks, in the output of a batch job and in the folder of a training run."""


def last_line(error: BaseException) -> str:
    """The last line of an exception's text, with its type."""
    lines = [line.strip() for line in traceback.format_exception_only(error) if line.strip()]
    text = (lines[-1].splitlines() or [""])[-1] if lines else ""
    name = type(error).__name__
    return (text if name in text else f"{name}: {text}")[:500]


def without_numbers(text: str) -> str:
    """An error's text without what differs from one time to the next, such as addresses or free bytes."""
    return re.sub(r"0x[0-9a-f]+|[\d.]+", "#", text)
