"""The exceptions of the project, in one tree: mistakes of the user, images that cannot be read, and all others.

A command prints these errors as one sentence. Any other exception is a bug and keeps its traceback. Storage errors and
incomplete jobs are in `captionlib.storage.errors` and `jobs.cli.errors`.
"""

from __future__ import annotations


class CaptionlibWarning(UserWarning):
    """Something works, but not as well as it could. Jobs forward these warnings from the actors to the user."""


class CaptionlibError(Exception):
    """The base of all exceptions that the project defines."""


class UserError(CaptionlibError, ValueError):
    """Something that the user stated is wrong or cannot be used here. The message names it and says what to do."""


class ImageError(CaptionlibError, ValueError):
    """An image cannot be read or decoded, and retrying cannot help.

    Args:
        kind: a stable name for statistics and queries, such as `TruncatedImage`.
        message: text for people.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both as args, so that the error survives pickling
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"
