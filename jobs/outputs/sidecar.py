"""Writes a text file with the caption for each image, as training tools expect: photo.jpg, photo.txt."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from captionlib.errors import UserError
from captionlib.masking import masked
from captionlib.storage.folder import Folder
from captionlib.storage.paths import is_local
from jobs.inputs.listing import ImageRef
from jobs.inputs.run_shard import without_ending

SidecarMode = Literal["skip", "overwrite", "append"]

FindNew = Callable[[list[str]], list[int]]

THREADS = 16
FOLDERS = 64
"""Maximum number of folders whose names are kept in memory."""
_WRITABLE = ("s3://", "s3a://", "gs://", "gcs://", "abfs://", "abfss://", "az://", "adl://", "oci://", "memory://")


@dataclass(frozen=True)
class Sidecar:
    """Writes the text files of a chunk, before the rows of the chunk.

    The text file of `a.jpg` is `a.txt`. If another image has that file already, such as `a.png`, it is `a.jpg.txt`: the
    image with the lower image id has the short name.
    """

    mode: SidecarMode
    """What happens to an existing text file."""
    prefix: str = ""
    suffix: str = ""
    ending: str = ".txt"
    """Of the text files."""
    folder: str | None = None
    """Absolute path or URL of a folder with a tree like that of the inputs; None: beside the images."""
    roots: tuple[str, ...] = ()
    """Absolute paths or URLs of the inputs, from which the tree begins."""
    is_sharded: bool = False
    """Whether other runs write the files of other images (`--shard`). An image then has a short name only if all images
    that would share it are in the same shard; others, such as `img.php?id=5`, keep their whole name."""
    full_names: frozenset[str] = frozenset()
    """Masked paths of the images whose short name belongs to another image."""
    left_out: Counter[str] = field(default_factory=Counter, compare=False)
    """Number of images that `check` has left out."""

    def check(self, listing: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the images through and check that a file can be written for each. With the mode `skip`, images that
        have a text file are left out: they are not read.

        Raises:
            UserError: an image is not a file of its own, so nothing can be written beside it.
        """
        for image in listing:
            if self.folder is None:
                if image.shard is not None:
                    raise UserError(
                        f"--sidecar writes beside image files, but {image.path} is inside of another file: give "
                        "--sidecar-folder"
                    )
                if not is_local(image.path) and not image.path.startswith(_WRITABLE):
                    raise UserError(
                        f"--sidecar cannot write beside {masked(image.path)}: give --sidecar-folder, or copy the images"
                    )
            if self.mode == "skip" and self._is_there(image.path):
                self.left_out["images"] += 1
            else:
                yield image

    def without_collisions(self, paths: Iterable[list[str]], find_new: FindNew) -> Sidecar:
        """The same with the images whose short name belongs to another one.

        Args:
            paths: of all images in batches, by image id.
            find_new: returns the positions of the texts that it has not got before.
        """
        full: set[str] = set()
        for batch in paths:
            new = set(find_new(["/".join(self._place(path)) for path in batch]))
            full.update(masked(path) for i, path in enumerate(batch) if i not in new)
        return dataclasses.replace(self, full_names=frozenset(full))

    def write(self, captions: Iterable[tuple[str, str]]) -> None:
        """Write the text of each (path, caption). Writing twice gives the same result as writing once.

        Raises:
            PermissionError, TransportFault: as `Folder.write`.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda pair: self._write_one(*pair), captions):
                pass

    def _place(self, path: str) -> tuple[str, str]:
        """Folder and name of the text file for an image."""
        folder, _, name = path.rpartition("/")
        if self.is_sharded:
            name = masked(path).rpartition("/")[2]  # a whole name may have a signature in it
        if self.folder is not None:
            folder = f"{self.folder}/{_below(folder, self.roots)}".rstrip("/")
            name = re.sub(r'[?*:"<>|\\]', "_", name)
        stem = name
        if masked(path) not in self.full_names:
            stem = without_ending(name) if self.is_sharded else os.path.splitext(name)[0]
        return folder, f"{stem}{self.ending}"

    def _is_there(self, path: str) -> bool:
        folder, name = self._place(path)
        return os.path.exists(f"{folder}/{name}") if is_local(folder) else name in _names(folder)

    def _write_one(self, path: str, caption: str) -> None:
        folder, name = self._place(path)
        place = Folder(folder)
        text = f"{self.prefix}{caption}{self.suffix}"
        if self.mode != "overwrite":
            try:
                there = place.read(name).decode("utf-8", "replace").replace("\r\n", "\n").rstrip("\n")
            except FileNotFoundError:
                there = ""
            else:
                # An interrupted chunk is processed again, and other programs may have added lines in the meantime.
                if self.mode == "skip" or f"\n{text}\n" in f"\n{there}\n":
                    return
            text = f"{there}\n{text}" if there else text
        place.write(name, f"{text}\n".encode(), durable=False)


@functools.lru_cache(FOLDERS)
def _names(folder: str) -> frozenset[str]:
    return frozenset(Folder(folder).names())


def _below(folder: str, roots: Iterable[str]) -> str:
    """The part of a folder's path behind the input that it belongs to."""
    for root in sorted(roots, key=len, reverse=True):
        if f"{folder}/".startswith(f"{root}/"):
            return folder[len(root) :].strip("/")
    return folder.partition("://")[2].rpartition("@")[2] if "://" in folder else folder.strip("/")
