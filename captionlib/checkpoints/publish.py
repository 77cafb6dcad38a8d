"""Brings finished checkpoints to the folder or bucket that a person named."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captionlib.checkpoints.files import CONFIG
from captionlib.storage.folder import Folder


def publish_checkpoint(directory: str | Path, output: Folder) -> None:
    """Copy the files of a checkpoint from a local folder.

    config.json is written last, so that a folder that contains it is complete.
    """
    for file in sorted(Path(directory).iterdir(), key=lambda file: file.name == CONFIG):
        output.write(file.name, file.read_bytes())


@contextmanager
def changed_copy(directory: str | Path, output: Folder) -> Iterator[Path]:
    """Give a copy of a checkpoint to change, and publish it when the block has ended without an error.

    The output may be the folder of the original.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "checkpoint"
        shutil.copytree(directory, draft)
        yield draft
        publish_checkpoint(draft, output)
