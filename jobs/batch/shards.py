"""Chooses the folder of a run inside OUTPUT: OUTPUT itself, or that of its shard (`--shard`).

An output is either ordinary or has shards of one number of runs; `jobs.merge` makes the first of the second.
"""

from __future__ import annotations

from collections.abc import Sequence

from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from jobs.batch.settings import BatchSettings
from jobs.inputs.run_shard import RunShard
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles

MERGING = "merge.json"
"""A file of an output while its shards are merged into it."""


def output_of(settings: BatchSettings, folders: Sequence[str]) -> Folder:
    """Return the folder that a run writes to.

    Args:
        folders: subfolders of an output of this job.

    Raises:
        UserError: the output has other shards, or shards and no `--shard` is given, or the other way round.
    """
    root, shard = Folder.of(settings.output), settings.run_shard
    try:
        there = shards_in(root)
        if shard is None:
            _check_without_shard(root, there)
            return root
        _check_with_shard(root, there, shard, folders)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # of the storage, or of a URL that nothing knows
        raise UserError(f"the output {root.url} cannot be written, as it cannot be listed: {error}") from error
    return root / shard.folder_name


def shards_in(output: Folder) -> list[RunShard]:
    """Return the shards that have a folder in an output, ascending."""
    return sorted(shard for shard in map(RunShard.of_folder, output.folder_names()) if shard is not None)


def _check_without_shard(root: Folder, there: Sequence[RunShard]) -> None:
    if there and not root.exists(run_record.NAME):
        raise UserError(
            f"{root.url} contains {there[0].folder_name}, the output of a run with --shard {there[0]}: give --shard as "
            f"well, merge the shards with python -m jobs.merge {root.url}, or choose another output"
        )


def _check_with_shard(root: Folder, there: Sequence[RunShard], shard: RunShard, folders: Sequence[str]) -> None:
    if root.exists(run_record.NAME):
        if "merged" in run_record.read_record(root):
            raise UserError(
                f"the shards in {root.url} are merged already: leave out --shard, and this command processes what is "
                "new; or choose another output"
            )
        raise UserError(
            f"{root.url} is the output of a run without --shard: leave out --shard, or choose another output"
        )
    if not root.exists(MERGING):  # an unfinished merge has rows, too; the next one begins anew if a shard has changed
        for name in folders:
            if ChunkFiles(root / name, name).finished():
                raise UserError(
                    f"{root.url} contains the rows of a run without --shard (in {name}): choose another output"
                )
    other = next((found for found in there if found.of != shard.of), None)
    if other is not None:
        raise UserError(
            f"{root.url} contains {other.folder_name}, so its images are divided among {other.of} runs, not "
            f"{shard.of}: use --shard K/{other.of}, or choose another output"
        )
