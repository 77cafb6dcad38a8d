"""Divides the images of the inputs among several runs: `--shard 3/8` selects the share of the third of eight runs.

In the manifest and in the field, a tar or Parquet file with many images is called a shard as well. Here the word means
the share of one run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from captionlib.errors import UserError

_TEXT = re.compile(r"([0-9]+)/([0-9]+)")
_FOLDER = re.compile(r"shard-([1-9][0-9]*)-of-([1-9][0-9]*)")
# By its shape and not by a list of formats: a format that is added later must not move an image to another shard. What
# follows the dot of `img.php?id=5` has no such shape, so these images are not all in one shard.
_ENDING = re.compile(r"(?<=[^/])\.[A-Za-z][A-Za-z0-9]{0,4}\Z")


@dataclass(frozen=True, order=True)
class RunShard:
    """The share of one run: the images whose path hashes to it."""

    of: int
    """Number of shards, N."""
    number: int
    """1 to N."""

    @classmethod
    def parse(cls, text: str) -> RunShard:
        """Parse K/N.

        Raises:
            UserError: the text has another form, or K is not in 1 to N.
        """
        match = _TEXT.fullmatch(text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard takes K/N with K from 1 to N, such as 3/8 for the third of eight, got {text!r}")
        return cls(int(match[2]), int(match[1]))

    @classmethod
    def of_folder(cls, name: str) -> RunShard | None:
        """Return the shard whose folder has this name; None if it is not the folder of a shard."""
        match = _FOLDER.fullmatch(name)
        return cls(int(match[2]), int(match[1])) if match is not None and int(match[1]) <= int(match[2]) else None

    @property
    def folder_name(self) -> str:
        """Name of the folder of this shard in the output."""
        return f"shard-{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def contains(self, path: str) -> bool:
        """Whether an image belongs to this shard.

        It depends on nothing but the path (as in the manifest), so it is the same on every machine and in every run,
        whatever images are added. The ending is left out: photo.jpg and photo.png, which may share a text file beside
        them, are always in the same shard.
        """
        digest = hashlib.blake2b(without_ending(path).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.of == self.number - 1


def without_ending(path: str) -> str:
    """Remove an ending such as `.jpg`: a dot, a letter, and at most four more letters or digits."""
    return _ENDING.sub("", path)
