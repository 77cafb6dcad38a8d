"""Deletes the folders of merged shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from jobs.batch.resume import empty_output
from jobs.cli.tracebacks import FOLDER as FAILURES
from jobs.inputs.run_shard import RunShard
from jobs.merging.check import digest_of, files_of


def delete_shards(output: Folder, record: Mapping[str, Any]) -> int:
    """Delete what the jobs have written into the folders of the shards; return the number of folders.

    Args:
        record: run.json of the merged output, which was checked.

    Raises:
        UserError: a shard has changed since it was merged; none was deleted.
    """
    merged: Mapping[str, str] = record["merged"]["shards"]
    there = [name for name in output.folder_names() if RunShard.of_folder(name) is not None and name in merged]
    for name in there:
        if digest_of(output / name) not in (None, merged[name]):  # None: an earlier deletion was interrupted
            raise UserError(f"{output.url}/{name} has changed since it was merged: move it away")
    for name in there:
        _delete(output / name, record)
    return len(there)


def _delete(folder: Folder, record: Mapping[str, Any]) -> None:
    empty_output(folder, files_of(folder, record))
    for name in (folder / FAILURES).names():
        (folder / FAILURES).delete(name)
    folder.delete(".lock")
    if folder.is_local:
        for place in (*(f"{folder.url}/{name}" for name in [*record["folders"], "manifest", FAILURES]), folder.url):
            with contextlib.suppress(OSError):  # it is not there, or has files of somebody else
                os.rmdir(place)
