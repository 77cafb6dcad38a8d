"""Check the outputs of runs with --shard, and merge them into one.

    python -m jobs.caption photos captions --shard 1/2      # on one machine
    python -m jobs.caption photos captions --shard 2/2      # on another
    python -m jobs.merge captions

The result is an ordinary output with one row per image, as if one run had processed all images. The same job continues
it, without --shard. The shards are kept. If the command is interrupted, run it again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from captionlib.errors import UserError
from captionlib.masking import masked
from jobs.cli.arguments import parse

if TYPE_CHECKING:
    from captionlib.storage.folder import Folder
    from jobs.merging.check import ShardOutput

PROG = "python -m jobs.merge"


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Settings of the merge."""

    output: Positional[str]
    """Folder or URL that was the OUTPUT of all runs, with the folders shard-1-of-N and so on."""
    check: bool = False
    """Only check that all shards are there, complete and made in the same way; write nothing."""
    delete_shards: bool = False
    """Delete the folders of the shards after the merged output has been checked."""

    def __post_init__(self) -> None:
        if self.check and self.delete_shards:
            raise UserError("--check deletes nothing: leave out --delete-shards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 merged, 1 shards are missing or incomplete, 2 invalid request."""
    settings = parse(MergeSettings, argv, prog=PROG, description=__doc__ or "")
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: merge(settings))


def merge(settings: MergeSettings) -> int:
    """Check and merge the shards of an output; return the exit code.

    Raises:
        UserError: the output is not one of shards, or they do not fit together.
        jobs.cli.errors.JobIncomplete: shards are missing or incomplete.
    """
    from captionlib.storage.folder import Folder
    from jobs.batch.resume import output_lock
    from jobs.batch.shards import MERGING
    from jobs.merging.check import find_shards
    from jobs.outputs.run_record import read_record

    output = Folder.of(settings.output)
    if settings.check:
        record = read_record(output)
        if record:
            _check_again(output, record)
        else:
            _checked(output)
            print(masked(f"all shards can be merged: {PROG} {output.url}"))
        return 0
    if not read_record(output):
        find_shards(output)  # or else the lock would create a folder
    with output_lock(output):
        record = read_record(output)
        if record:
            _check_again(output, record)
            output.delete(MERGING)  # left by a merge that was killed at its very end
        else:
            record = _merge(output)
        if settings.delete_shards:
            from jobs.merging.delete import delete_shards

            print(f"deleted {delete_shards(output, record):,} folders of shards")
    return 0


def _checked(output: Folder) -> list[ShardOutput]:
    from jobs.merging.check import check_alike, check_complete, open_shards

    shards = open_shards(output)
    _print_table(shards)
    check_complete(output, shards)
    check_alike(shards)
    return shards


def _merge(output: Folder) -> dict[str, Any]:
    from jobs.merging.copy import merge_shards

    record = merge_shards(output, _checked(output))
    planned, done, failed = record["images"].values()
    verb = list(record["images"])[1]
    rows = masked(f"{output.url}/{record['folders'][-1]}")
    print(f"{done:,} {verb} + {failed:,} failed = {planned:,} planned")
    print(f'rows:   {rows}  (pandas.read_parquet("{rows}"))')
    print(f"The same python -m jobs.{record['job']} without --shard continues this output", end="")
    print(", and writes report.html and exports" if record["job"] == "caption" else "")
    return record


def _check_again(output: Folder, record: dict[str, Any]) -> None:
    """Check an output that has a record already."""
    from jobs.merging.check import files_of
    from jobs.merging.copy import check_merged
    from jobs.outputs.chunk_files import FileCounts

    if "merged" not in record:
        raise UserError(f"{output.url} is the output of a run without --shard: there is nothing to merge")
    rows = FileCounts(**record["merged"]["rows"])
    check_merged(output, files_of(output, record), rows)
    print(f"merged already: {rows.total:,} images of {len(record['merged']['shards']):,} shards have a row")


def _print_table(shards: Sequence[ShardOutput]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("shard")
    for title in ("planned", "done", "failed"):
        table.add_column(title, justify="right")
    table.add_column("state")
    for one in shards:
        planned = one.manifest.num_images
        numbers = (f"{number:,}" for number in (planned, one.rows.done, one.rows.failed)) if one.record else ("",) * 3
        table.add_row(str(one.shard), *numbers, one.state)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
