"""Writes a text file with the caption beside each image, such as photo.txt beside photo.jpg, as trainers expect."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from captionlib.errors import UserError
from jobs.inputs.listing import ImageRef
from jobs.storage.folder import Folder
from jobs.storage.paths import is_local

SidecarMode = Literal["skip", "overwrite", "append"]

THREADS = 16
_WRITABLE = ("s3://", "s3a://", "gs://", "gcs://", "abfs://", "abfss://", "az://", "adl://", "oci://", "memory://")


@dataclass(frozen=True)
class Sidecar:
    """Writes the text files of a chunk, before the rows of the chunk."""

    mode: SidecarMode
    """What happens to an existing text file."""
    prefix: str = ""
    suffix: str = ""

    def check(self, listing: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Pass the images through and check that a file can be written beside each.

        Raises:
            UserError: an image is not a file of its own.
        """
        for image in listing:
            if image.shard is not None:
                raise UserError(f"--sidecar writes beside image files, but {image.path} is inside of another file")
            if not is_local(image.path) and not image.path.startswith(_WRITABLE):
                raise UserError(f"--sidecar cannot write beside {image.path}: leave it out, or copy the images")
            yield image

    def write(self, captions: Iterable[tuple[str, str]]) -> None:
        """Write the text of each (path, caption). Writing twice gives the same result as writing once.

        Raises:
            PermissionError, TransportFault: as `Folder.write`.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda pair: self._write_one(*pair), captions):
                pass

    def _write_one(self, path: str, caption: str) -> None:
        folder, _, name = path.rpartition("/")
        place, name = Folder(folder), f"{os.path.splitext(name)[0]}.txt"
        text = f"{self.prefix}{caption}{self.suffix}"
        if self.mode != "overwrite":
            try:
                there = place.read(name).decode("utf-8", "replace").rstrip("\n")
            except FileNotFoundError:
                there = ""
            else:
                # A chunk that was interrupted is done again: what was appended then is at the end.
                if self.mode == "skip" or there == text or there.endswith(f"\n{text}"):
                    return
            text = f"{there}\n{text}" if there else text
        place.write(name, f"{text}\n".encode(), durable=False)
