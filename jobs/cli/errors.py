"""Errors that end a command with a sentence instead of a traceback."""

from __future__ import annotations

from captionlib.errors import CaptionlibError


class JobIncomplete(CaptionlibError):
    """The job stopped before it was complete. The message states the reason and what to do."""
