"""Stores the rows of a job: one Parquet file per range of image ids. A range is finished when its file exists.

`captions-000000000000-000000000511.parquet` contains one row for each image id from 0 to 511. A listing therefore shows
which images remain, writing a file twice replaces it, and `pandas.read_parquet(folder)` reads all rows.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Literal, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captionlib.errors import UserError
from captionlib.storage.folder import TEMPORARY, Folder
from jobs.outputs import schemas
from jobs.outputs.id_ranges import IdRange, cut, without_covered

ROWS_PER_FILE = 50_000
"""Approximate number of rows per file after `compact`."""
LISTINGS = 3
"""Number of listings with which counting is tried while another job on the same output merges its files."""
MERGES_AT_ONCE = 4
"""Number of files that `compact` writes concurrently; limits its memory."""
LARGEST_CHUNK = 2_048
"""A file with more rows is split before some of its rows are processed again."""

_DEFERRED_KEY = b"captionlib.deferred"
_DEFERRED_AT_KEY = b"captionlib.deferred_at"

T = TypeVar("T")
R = TypeVar("R")


Redo = Literal["errors", "deferred"]


class Counts(NamedTuple):
    """Numbers of rows without and with an error in a finished output."""

    done: int
    failed: int


class FileCounts(NamedTuple):
    """Numbers of rows in one or several files."""

    done: int = 0
    failed: int = 0
    deferred: int = 0
    """Rows whose images could not be fetched yet."""

    @property
    def total(self) -> int:
        """Number of all rows."""
        return self.done + self.failed + self.deferred

    def plus(self, other: FileCounts) -> FileCounts:
        """Add two counts."""
        return FileCounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: FileCounts) -> FileCounts:
        """Subtract another count."""
        return FileCounts(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class ChunkFiles:
    """The Parquet files `<stem>-<first>-<last>.parquet` of a folder. All other files are ignored."""

    folder: Folder
    stem: str

    def finished(self) -> list[IdRange]:
        """Return the ranges of the files, ascending, without files that lie inside the range of a larger file.

        Raises:
            UserError: files overlap in a way that this project does not produce.
        """
        try:
            return without_covered(self._listed())[0]
        except ValueError as error:
            raise UserError(f"{self.folder.url}: {error}: move one of these files away") from error

    def write(self, ids: IdRange, table: pa.Table) -> None:
        """Write the file of a range, replacing an existing one."""
        assert table.num_rows == ids.size, f"{table.num_rows} rows for {ids}"
        # Stored in the footer, so that a resumed run finds deferred images without reading rows.
        deferred = pc.sum(pc.starts_with(table.column("error"), schemas.DEFERRED)).as_py() or 0
        metadata = dict(table.schema.metadata or {})
        for key, value in ((_DEFERRED_KEY, deferred), (_DEFERRED_AT_KEY, time.time())):
            metadata.pop(key, None)
            if deferred:
                metadata[key] = str(value).encode()
        table = table.replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        # A dictionary and statistics of a tensor's values take three times as long as all else, and help nobody.
        searchable = not any(pa.types.is_fixed_size_binary(field.type) for field in table.schema)
        pq.write_table(
            table,
            sink,
            compression="zstd",
            row_group_size=ROWS_PER_FILE,
            use_dictionary=searchable,
            write_statistics=searchable,
        )
        self.folder.write(self._name(ids), memoryview(sink.getvalue()))

    def read(self, ids: IdRange, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the rows of the file of exactly this range."""
        return self.folder.read_with(self._name(ids), lambda file: pq.ParquetFile(file).read(columns=columns))

    def exists(self, ids: IdRange) -> bool:
        """Whether a file of exactly this range exists."""
        return self.folder.exists(self._name(ids))

    def metadata(self, ids: IdRange) -> dict[str, str]:
        """Return the project's own metadata of a file, see `schemas.with_metadata`."""
        stored = self.folder.read_with(self._name(ids), pq.read_schema).metadata or {}
        prefix = b"captionlib."
        return {k[len(prefix) :].decode(): v.decode() for k, v in stored.items() if k.startswith(prefix)}

    def deferred_at(self, ids: IdRange) -> float | None:
        """Return when images of a file were deferred, in seconds since the epoch.

        Returns:
            None if the file has no row of such an image.
        """
        found = self.folder.read_with(self._name(ids), pq.read_schema).metadata or {}
        return float(found.get(_DEFERRED_AT_KEY, 0)) if _DEFERRED_KEY in found else None

    def count(self, ranges: Iterable[IdRange]) -> dict[IdRange, FileCounts]:
        """Count the rows of each file, from the footers of the files.

        Raises:
            UserError: the footer of a file contradicts its name.
        """
        ordered = list(ranges)
        counted = dict(zip(ordered, self._parallel(self._count_file, ordered), strict=True))
        for ids, counts in counted.items():
            if counts.total != ids.size:
                raise UserError(
                    f"{self.folder.url}/{self._name(ids)} has {counts.total} rows, not {ids.size}: delete this "
                    "file and run the command again"
                )
        return counted

    def totals(self) -> FileCounts:
        """Count the rows of all files. Each costs a request, so the job does this as rarely as possible.

        Raises:
            FileNotFoundError: files are deleted again and again while they are counted.
        """
        for _ in range(LISTINGS - 1):
            with contextlib.suppress(FileNotFoundError):  # another job on the same output has merged it meanwhile
                return sum_counts(self.count(self.finished()).values())
        return sum_counts(self.count(self.finished()).values())

    def tidy(self) -> None:
        """Delete remains of an interrupted run: files inside the range of a larger file, and incomplete files."""
        for ids in without_covered(self._listed())[1]:
            self.folder.delete(self._name(ids))
        for name in self.folder.names():
            if name.startswith(f".{self.stem}-") and name.endswith(TEMPORARY):
                self.folder.delete(name)

    def compact(self, target_rows: int = ROWS_PER_FILE) -> None:
        """Merge adjacent small files into files of about `target_rows` rows.

        After a crash, small files may exist beside the merged file; `tidy` deletes them. Files that another job on the
        same output has merged and deleted meanwhile are left to that job.
        """
        with ThreadPoolExecutor(MERGES_AT_ONCE) as pool:
            list(pool.map(self._merge_files, adjacent_groups(self.finished(), target_rows)))

    def split_for_redo(
        self, counted: Mapping[IdRange, FileCounts], images_per_chunk: int, kind: Redo = "errors"
    ) -> dict[IdRange, int]:
        """Return the files that contain errors with the number of errors, after splitting large files into chunks.

        After a crash, chunks may exist beside the large file that they were split from; `tidy` deletes them.

        Args:
            counted: all files with their counts.
            kind: all errors, or only those of images that could not be fetched yet.
        """
        found: dict[IdRange, int] = {}
        for ids, counts in counted.items():
            count = counts.deferred + (counts.failed if kind == "errors" else 0)
            if not count:
                continue
            if ids.size <= LARGEST_CHUNK:
                found[ids] = count
                continue
            table = self.read(ids)
            chunks = {c: table.slice(c.first - ids.first, c.size) for c in cut([ids], images_per_chunk)}
            self._parallel(lambda chunk: self.write(chunk, chunks[chunk]), list(chunks))  # noqa: B023  it ends here
            found |= {chunk: n for chunk, rows in chunks.items() if (n := len(ids_to_redo(rows, kind)))}
            self.folder.delete(self._name(ids))
        return found

    def delete(self) -> None:
        """Delete all of these files; other files of the folder remain."""
        self._parallel(self.folder.delete, [self._name(ids) for ids in self._listed()])

    def _name(self, ids: IdRange) -> str:
        return f"{self.stem}-{ids.first:012d}-{ids.last:012d}.parquet"

    def _listed(self) -> list[IdRange]:
        pattern = re.compile(re.escape(self.stem) + r"-(\d{12})-(\d{12})\.parquet")
        matches = map(pattern.fullmatch, self.folder.names())
        return [IdRange(int(match[1]), int(match[2])) for match in matches if match is not None]

    def _count_file(self, ids: IdRange) -> FileCounts:
        return self.folder.read_with(self._name(ids), _count_rows)

    def _merge_files(self, group: Sequence[IdRange]) -> None:
        try:
            merged = pa.concat_tables(self._parallel(self.read, group))
        except FileNotFoundError:
            return
        self.write(IdRange(group[0].first, group[-1].last), merged)
        self._parallel(self.folder.delete, [self._name(ids) for ids in group])

    def _parallel(self, action: Callable[[T], R], items: Sequence[T]) -> list[R]:
        with ThreadPoolExecutor(4 if self.folder.is_local else 32) as pool:
            return list(pool.map(action, items))


def sum_counts(counts: Iterable[FileCounts]) -> FileCounts:
    """Add up the counts of several files."""
    return functools.reduce(FileCounts.plus, counts, FileCounts())


def _count_rows(file: IO[bytes]) -> FileCounts:
    """Count rows, from the footer if it contains the statistics."""
    parquet = pq.ParquetFile(file)
    footer = parquet.metadata
    column = footer.schema.names.index("error")
    statistics = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    if all(s is not None and s.has_null_count for s in statistics):
        without_error = sum(s.null_count for s in statistics)
    else:
        without_error = parquet.read(columns=["error"]).column("error").null_count
    deferred = int((footer.metadata or {}).get(_DEFERRED_KEY, 0))
    return FileCounts(without_error, footer.num_rows - without_error - deferred, deferred)


def adjacent_groups(ranges: Iterable[IdRange], target_rows: int) -> list[list[IdRange]]:
    """Group at least two ranges without a gap between them, each group with about `target_rows` ids.

    A range larger than half that size is not merged.
    """
    groups: list[list[IdRange]] = [[]]
    size = 0
    for ids in ranges:
        large = ids.size > target_rows / 2
        gap = bool(groups[-1]) and groups[-1][-1].last + 1 != ids.first
        if large or gap or size + ids.size > target_rows:
            groups.append([])
            size = 0
        if not large:
            groups[-1].append(ids)
            size += ids.size
    return [group for group in groups if len(group) > 1]


def replace_rows(old: pa.Table, new: pa.Table) -> pa.Table:
    """Replace rows of `old` by rows of `new` with the same image_id; both are sorted by image_id."""
    kept = old.filter(pc.invert(pc.is_in(old.column("image_id"), value_set=new.column("image_id"))))
    return pa.concat_tables([kept.cast(new.schema), new]).sort_by("image_id")


def ids_to_redo(rows: pa.Table, kind: Redo) -> list[int]:
    """Return the image ids of the rows with an error, or only of those whose images could not be fetched yet."""
    errors = rows.column("error")
    chosen = pc.is_valid(errors) if kind == "errors" else pc.starts_with(errors, schemas.DEFERRED)
    ids: list[int] = rows.filter(chosen).column("image_id").to_pylist()
    return ids
