"""Copies the rows and manifests of all shards into one output, file by file, with image ids that follow each other.

The ids of a shard begin where those of the shard before it end. A file appears complete or not at all, and the record
of the output is written last: after a crash, the next merge continues, or starts over if a shard has changed since.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from captionlib.errors import UserError
from captionlib.masking import masked
from captionlib.storage.folder import Folder
from jobs.batch.manifest import Manifest, delete_manifest
from jobs.batch.resume import output_lock
from jobs.batch.shards import MERGING
from jobs.merging.check import ShardOutput, digest_of, files_of, reference
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange, subtract
from jobs.outputs.rows import renumbered

FILES_AT_ONCE = 4
"""Number of files of rows in memory. A file of features has up to 100 MB."""


def merge_shards(output: Folder, shards: Sequence[ShardOutput]) -> dict[str, Any]:
    """Merge checked shards into an output whose lock is held; return its record.

    Raises:
        UserError: the output has rows that no merge has written, or a shard has changed or is being changed.
    """
    started, first = time.monotonic(), reference(shards)
    outputs, total = files_of(output, first.record), sum(one.manifest.num_images for one in shards)
    plan = {one.folder.url.rpartition("/")[2]: one.digest for one in shards}
    _begin(output, outputs, plan)
    copier = _Copier(output, outputs)
    for one, offset in _with_offsets(shards):
        if one.manifest.num_images:
            with output_lock(one.folder):
                copier.copy(one, offset)
            done = offset + one.manifest.num_images
            print(f"merged shard {one.shard}: {done:,} of {total:,} images", file=sys.stderr, flush=True)
    for one in shards:
        if digest_of(one.folder) != one.digest:
            raise UserError(f"shard {one.shard} was changed during the merge: merge again when its run has ended")
    rows = sum_of(shards)
    check_merged(output, outputs, rows)
    record = _record(shards, plan, rows, time.monotonic() - started)
    run_record.write_record(output, record)
    output.delete(MERGING)
    return record


def sum_of(shards: Sequence[ShardOutput]) -> FileCounts:
    """Add the numbers of rows."""
    return FileCounts(sum(one.rows.done for one in shards), sum(one.rows.failed for one in shards))


def check_merged(output: Folder, outputs: Mapping[str, ChunkFiles], rows: FileCounts) -> None:
    """Check that an output contains the merged images and their rows. It may have more, of later runs.

    Raises:
        UserError: it does not.
    """
    planned = Manifest.open(output / "manifest").num_images
    if planned < rows.total:
        raise UserError(f"the manifest of {output.url} has {planned:,} images, not {rows.total:,}")
    for files in outputs.values():
        gaps = subtract([IdRange(0, rows.total - 1)], files.finished())
        if gaps:
            raise UserError(f"{files.folder.url} lacks the rows of images {gaps[0].first} to {gaps[0].last}")
    here = list(outputs.values())[-1].totals()  # --retry-errors may have made fewer of them fail
    if here.total < rows.total or here.done < rows.done:
        raise UserError(
            f"{output.url} has {here.done:,} + {here.failed:,} rows without and with an error, fewer than "
            f"{rows.done:,} + {rows.failed:,} of the shards"
        )


def _begin(output: Folder, outputs: Mapping[str, ChunkFiles], plan: Mapping[str, str]) -> None:
    """Record what is merged; delete the files of an interrupted merge if a shard has changed since."""
    try:
        earlier = json.loads(output.read(MERGING))
    except FileNotFoundError:
        for files in outputs.values():
            if files.finished():
                raise UserError(f"{files.folder.url} contains rows that are of no merge: move them away") from None
        if Manifest.open(output / "manifest").files:
            raise UserError(f"{output.url}/manifest contains images that are of no merge: move it away") from None
        earlier = None
    except ValueError:
        earlier = None  # damaged
    if earlier != plan:
        for files in outputs.values():
            files.delete()
        delete_manifest(output / "manifest")
    output.write(MERGING, json.dumps(plan, indent=2).encode())


def _with_offsets(shards: Sequence[ShardOutput]) -> Iterator[tuple[ShardOutput, int]]:
    offset = 0
    for one in shards:
        yield one, offset
        offset += one.manifest.num_images


class _Copier:
    """Copies the files of shards, except those that an interrupted merge has copied already."""

    def __init__(self, output: Folder, outputs: Mapping[str, ChunkFiles]) -> None:
        self.manifest, self.outputs = output / "manifest", outputs
        for files in outputs.values():
            files.tidy()
        self._manifest_files = set(Manifest.open(self.manifest).files)
        self._row_files = {name: set(files.finished()) for name, files in outputs.items()}

    def copy(self, one: ShardOutput, offset: int) -> None:
        """Copy one shard.

        Args:
            offset: number of images in the shards before it.

        Raises:
            UserError: its rows are not those of its manifest.
        """
        for ids in one.manifest.files:
            if _moved(ids, offset) not in self._manifest_files:
                one.manifest.copy_file(ids, self.manifest, offset)
        for name, source in one.outputs.items():
            left = [ids for ids in source.finished() if _moved(ids, offset) not in self._row_files[name]]
            copy = functools.partial(_copy_rows, one.manifest, source, self.outputs[name], offset)
            pool = ThreadPoolExecutor(FILES_AT_ONCE)
            try:
                for _ in pool.map(copy, left):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)


def _copy_rows(manifest: Manifest, source: ChunkFiles, target: ChunkFiles, offset: int, ids: IdRange) -> None:
    rows = source.read(ids)
    paths = [masked(path) for path in manifest.read(ids).column("path").to_pylist()]
    has_ids = rows.column("image_id").to_numpy()
    if not np.array_equal(has_ids, np.arange(ids.first, ids.last + 1)) or rows.column("path").to_pylist() != paths:
        raise UserError(
            f"{source.folder.url}: the rows {ids.first} to {ids.last} are not of the images that the manifest has: "
            "delete their file, and run the job of this shard again"
        )
    target.write(_moved(ids, offset), renumbered(rows, offset))


def _record(shards: Sequence[ShardOutput], plan: Mapping[str, str], rows: FileCounts, seconds: float) -> dict[str, Any]:
    """Return the run.json of the merged output."""
    first = reference(shards)
    verb = next(name for name in first.record["images"] if name not in ("planned", "failed"))
    left_out: dict[str, int] = {}
    for one in shards:  # each run has listed all inputs
        for ending, count in one.record.get("not_images", {}).items():
            left_out[ending] = max(count, left_out.get(ending, 0))
    merging = {
        "started": run_record.now(),
        "seconds": round(seconds, 1),
        "merged_shards": len(shards),
        "versions": run_record.versions(),
    }
    return {
        **first.record,
        "state": "complete",
        "identity": {name: value for name, value in first.record["identity"].items() if name != "shard"},
        "inputs": list(dict.fromkeys(text for one in shards for text in one.record.get("inputs", ()))),
        "not_images": left_out,
        "damaged_inputs": sorted({name for one in shards for name in one.record.get("damaged_inputs", ())}),
        # The last one has no settings, so the next run lists all inputs, even if those of the shards were not the same.
        "runs": [*_runs(shards), merging],
        "images": {"planned": rows.total, verb: rows.done, "failed": rows.failed},
        "merged": {"rows": {"done": rows.done, "failed": rows.failed}, "shards": dict(plan)},
    }


def _runs(shards: Sequence[ShardOutput]) -> list[dict[str, Any]]:
    """Return the runs of all shards in the order of their start. Only the first states settings that all have."""
    runs = [{"shard": str(one.shard), **run} for one in shards for run in one.record.get("runs", ())]
    runs.sort(key=lambda run: str(run["started"]))
    common = {name: _without_shard(runs[0].get(name)) for name in ("settings", "versions")} if runs else {}
    return runs[:1] + [
        {k: v for k, v in run.items() if k not in common or _without_shard(v) != common[k]} for run in runs[1:]
    ]


def _without_shard(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (values or {}).items() if name != "shard"}


def _moved(ids: IdRange, offset: int) -> IdRange:
    return IdRange(ids.first + offset, ids.last + offset)
