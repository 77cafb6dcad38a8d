"""Errors that end a command with a sentence instead of a traceback."""

from __future__ import annotations


class JobIncomplete(Exception):
    """The job stopped before it was complete. The message states the reason and what to do."""
