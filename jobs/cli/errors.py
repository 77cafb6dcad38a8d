"""Errors that end a command with a sentence instead of a traceback."""

from __future__ import annotations


class JobIncomplete(Exception):
    """The job cannot go on, or is not complete; the message says why, and what to do."""
