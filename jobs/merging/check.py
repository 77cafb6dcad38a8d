"""Checks the outputs of runs with `--shard` before they are merged: all are there and complete, they were made in the
same way, and each image belongs to the shard that has it. Together this means that each image is there exactly once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captionlib.errors import UserError
from captionlib.masking import masked
from captionlib.storage.folder import Folder
from jobs.batch.manifest import Manifest
from jobs.batch.shards import shards_in
from jobs.cli.errors import JobIncomplete
from jobs.inputs.run_shard import RunShard
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange, subtract

MOST_NAMED = 10
"""Maximum number of shards that a message names."""


@dataclass(frozen=True)
class ShardOutput:
    """The output of one run, as it was when it was read."""

    shard: RunShard
    folder: Folder
    record: Mapping[str, Any]
    """Contents of run.json; empty if there is none."""
    digest: str
    """Digest of run.json, which changes whenever a run changes rows."""
    state: str
    """`complete`, or what is wrong."""
    manifest: Manifest
    rows: FileCounts

    @property
    def is_complete(self) -> bool:
        """Whether each of its images has a row."""
        return self.state == "complete"

    @property
    def outputs(self) -> dict[str, ChunkFiles]:
        """Files by folder name; the last ones mark chunks as finished."""
        return files_of(self.folder, self.record)


def files_of(output: Folder, record: Mapping[str, Any]) -> dict[str, ChunkFiles]:
    """Return the files of an output by folder name.

    Args:
        record: contents of its run.json.
    """
    return {name: ChunkFiles(output / name, name) for name in record["folders"]}


def find_shards(output: Folder) -> list[RunShard]:
    """Return all N shards that an output should have, from those that it has.

    Raises:
        UserError: there are none, or those of several N.
    """
    there = shards_in(output)
    if not there:
        raise UserError(
            f"there are no shards in {output.url}: it should contain shard-1-of-N and so on, the outputs of runs with "
            "--shard 1/N and so on"
        )
    numbers = sorted({shard.of for shard in there})
    if len(numbers) > 1:
        raise UserError(
            f"{output.url} contains shards of {' and of '.join(map(str, numbers))} runs: delete those of one number"
        )
    return [RunShard(numbers[0], k) for k in range(1, numbers[0] + 1)]


def open_shards(output: Folder) -> list[ShardOutput]:
    """Read the state of all shards of an output, missing ones included.

    Raises:
        UserError: as `find_shards`, or the output of a shard is damaged.
    """
    return [_open(output, shard) for shard in find_shards(output)]


def digest_of(folder: Folder) -> str | None:
    """Return the digest of an output's run.json; None if there is none."""
    try:
        return _digest(folder.read(run_record.NAME))
    except FileNotFoundError:
        return None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _open(output: Folder, shard: RunShard) -> ShardOutput:
    folder = output / shard.folder_name
    nothing = Manifest(folder / "manifest", ())
    try:
        data = folder.read(run_record.NAME)
    except FileNotFoundError:
        return ShardOutput(shard, folder, {}, "", "missing", nothing, FileCounts())
    try:
        record = json.loads(data)
        images, there, state = record.get("images", {}), record["identity"].get("shard"), record.get("state")
        outputs = files_of(folder, record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder.url}/{run_record.NAME} is damaged ({error!r}): delete it, and run the job of this shard again "
            "with --overwrite"
        ) from error
    if there != str(shard):
        raise UserError(f"{folder.url} has the rows of shard {there}: a folder was renamed; give it its name again")
    manifest = Manifest.open(folder / "manifest")
    if state == "complete":
        for files in outputs.values():
            gaps, beyond = _compared(files.finished(), manifest.num_images)
            if beyond:
                raise UserError(
                    f"{files.folder.url} contains rows of image {beyond[0].first}, but the manifest has only "
                    f"{manifest.num_images} images: restore the manifest's files"
                )
            if gaps:
                state = f"without the rows of images from {gaps[0].first} on in {files.stem}"
        rows = list(outputs.values())[-1].totals()
        if rows.deferred:
            state = f"{rows.deferred:,} images could not be fetched yet"
    else:
        rows = FileCounts(*(count for name, count in images.items() if name != "planned"))
        state = "incomplete"
    return ShardOutput(shard, folder, record, _digest(data), state, manifest, rows)


def _compared(finished: Sequence[IdRange], num_images: int) -> tuple[list[IdRange], list[IdRange]]:
    """Return the ids without a row, and the ranges that have rows of no image."""
    planned = [IdRange(0, num_images - 1)]
    return subtract(planned, finished), subtract(finished, planned)


def check_complete(output: Folder, shards: Sequence[ShardOutput]) -> None:
    """Check that all shards are complete.

    Raises:
        JobIncomplete: some are not; the message has the command that completes the first of them.
    """
    left = [one for one in shards if not one.is_complete]
    if not left:
        return
    named = ", ".join(f"{one.shard} ({one.state})" for one in left[:MOST_NAMED])
    named += f", and {len(left) - MOST_NAMED:,} more" if len(left) > MOST_NAMED else ""
    record = next((one.record for one in shards if one.record), {})
    asked = (record.get("runs") or [{}])[-1].get("settings", {})
    command = [f"python -m jobs.{record.get('job', 'caption')}", asked.get("input", "INPUT")]
    command += [text for more in asked.get("also", ()) for text in ("--also", more)]
    command += [output.url, "--shard", str(left[0].shard)]
    raise JobIncomplete(
        f"{len(left):,} of {len(shards):,} shards cannot be merged yet: {named}. Run {' '.join(command)} "
        f"{'and so on ' if len(left) > 1 else ''}with the other settings of the first run, and then merge again"
    )


def check_alike(shards: Sequence[ShardOutput]) -> None:
    """Check that complete shards were made in the same way, and that each has images of its own only.

    Different inputs are reported on stderr, because the same inputs can have several names.

    Raises:
        UserError: they were not.
    """
    first = reference(shards)
    inputs: dict[str, RunShard] = {}
    for one in shards:
        has_rows = one.manifest.num_images > 0
        different = run_record.differences(_making(first, has_rows), _making(one, has_rows))
        if different:
            raise UserError(
                f"shards {first.shard} and {one.shard} were not made in the same way: {'; '.join(different)} ('there' "
                "is the first of them). Run the job of one of them again with the settings of the other and --overwrite"
            )
        if has_rows:
            inputs.setdefault(" ".join(one.record.get("inputs", ())), one.shard)
            _check_paths(one)
    if len(inputs) > 1:
        (text, shard), (other_text, other_shard), *_ = inputs.items()
        print(
            f"the last run with work for shard {shard} had the inputs {masked(text)}, that for shard {other_shard} "
            f"{masked(other_text)}: if these are not the same images, some are missing in one of the shards",
            file=sys.stderr,
        )


def reference(shards: Sequence[ShardOutput]) -> ShardOutput:
    """Return the shard that the others are compared with: the first one with images."""
    return next((one for one in shards if one.manifest.num_images), shards[0])


def _making(one: ShardOutput, has_rows: bool) -> dict[str, Any]:
    """What all shards must have in common; some of it is unknown without rows."""
    record = one.record
    common = {"job": record.get("job"), "folders": record.get("folders")}
    common |= {name: value for name, value in record["identity"].items() if name != "shard"}
    if has_rows:
        columns = one.manifest.columns()
        common |= {"arithmetic": record.get("arithmetic"), "columns of the manifest": str(columns)}
    return common


def _check_paths(one: ShardOutput) -> None:
    for paths in one.manifest.paths():
        for path in paths:
            if not one.shard.contains(path):
                raise UserError(
                    f"{one.folder.url} contains {masked(path)}, which does not belong to shard {one.shard}: its "
                    "manifest was changed. Delete the folder, and run the job of this shard again"
                )
