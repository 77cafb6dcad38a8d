"""The numbered list of all images of a job, as Parquet files with image_id, path, size and more.

An id never changes: later runs append new images. Memory is bounded: no Python object per image is kept, only an
8-byte hash of each known path.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from jobs.inputs.listing import ImageRef
from jobs.outputs import schemas
from jobs.outputs.id_ranges import IdRange
from jobs.outputs.rows import renumbered

ROWS_PER_FILE = 100_000
ROWS_PER_GROUP = 10_000  # so that a chunk reads only one or two row groups of a file
NO_COLUMNS = pa.schema([])
_FILE = re.compile(r"manifest-(\d{12})-(\d{12})\.parquet")


@dataclass(frozen=True)
class Manifest:
    """The manifest in an output folder, identified by its file names."""

    folder: Folder
    files: tuple[IdRange, ...]
    """Ranges of the files, ascending and without gaps."""

    @classmethod
    def open(cls, folder: Folder) -> Manifest:
        """Open the manifest of a folder; an empty one if there is none.

        Raises:
            UserError: a file in the middle is missing.
        """
        found = sorted(
            IdRange(int(match[1]), int(match[2])) for match in map(_FILE.fullmatch, folder.names()) if match is not None
        )
        next_id = 0
        for here in found:
            if here.first != next_id:
                raise UserError(
                    f"the manifest in {folder.url} has no file for image ids {next_id} to {here.first - 1}: "
                    "restore it, or start from the beginning with --overwrite"
                )
            next_id = here.last + 1
        return cls(folder, tuple(found))

    @property
    def num_images(self) -> int:
        """Number of images in all files."""
        return self.files[-1].last + 1 if self.files else 0

    def columns(self) -> pa.Schema | None:
        """Schema of the copied columns; None while the manifest has no file."""
        if not self.files:
            return None
        schema = self.folder.read_with(_name(self.files[0]), pq.read_schema)
        return pa.schema(schema.field("columns").type.fields if "columns" in schema.names else [])

    def whole_shards(self) -> set[str]:
        """Return the shards that are listed completely, so that they can be skipped.

        An interrupted listing ends at the end of a file, so the shard of the last row of a file may have more images.
        """
        whole: set[str] = set()
        for here in self.files:
            rows = self._columns(here, ["shard", "offset", "row"])
            shards, last = rows.column("shard"), rows.column("shard")[-1].as_py()
            whole.update(pc.unique(shards).to_pylist())
            whole.discard(last)
            # A damaged shard may have been repaired.
            has_place = pc.or_(pc.is_valid(rows.column("offset")), pc.is_valid(rows.column("row")))
            whole.difference_update(pc.unique(shards.filter(pc.invert(has_place))).to_pylist())
        return whole - {None}

    def read(self, ids: IdRange) -> pa.Table:
        """Read the rows of a range of ids, ascending: schema `schemas.MANIFEST`, and `columns` if there are any."""
        tables = []
        for here in self.files:
            if here.last < ids.first or here.first > ids.last:
                continue
            wanted = IdRange(max(ids.first, here.first), min(ids.last, here.last))
            tables.append(self._read_file(here, wanted))
        table = pa.concat_tables(tables)
        assert table.num_rows == ids.size, f"manifest has {table.num_rows} rows for {ids}"
        return table

    def _read_file(self, here: IdRange, ids: IdRange) -> pa.Table:
        """Read the rows of a range of ids that lies in one file."""
        first, last = ids.first - here.first, ids.last - here.first
        first_group, last_group = first // ROWS_PER_GROUP, last // ROWS_PER_GROUP
        groups = self.folder.read_with(
            _name(here), lambda file: pq.ParquetFile(file).read_row_groups(range(first_group, last_group + 1))
        )
        return groups.slice(first - first_group * ROWS_PER_GROUP, ids.size)

    def _columns(self, here: IdRange, names: list[str]) -> pa.Table:
        return self.folder.read_with(_name(here), lambda file: pq.ParquetFile(file).read(columns=names))

    def paths(self) -> Iterator[list[str]]:
        """Read the paths of all images in batches, by image id."""
        for here in self.files:
            yield self._columns(here, ["path"]).column("path").to_pylist()

    def copy_file(self, ids: IdRange, target: Folder, offset: int) -> None:
        """Write one of the files to another manifest, with a number added to its image ids.

        Args:
            target: folder of the other manifest, which receives the file of the new ids.
        """
        rows = renumbered(self.folder.read_with(_name(ids), lambda file: pq.ParquetFile(file).read()), offset)
        target.write(_name(IdRange(ids.first + offset, ids.last + offset)), _parquet(rows), is_private=True)

    def append(
        self,
        listing: Iterable[ImageRef],
        on_progress: Callable[[int], None] | None = None,
        columns: pa.Schema = NO_COLUMNS,
    ) -> Manifest:
        """Number the images of a listing that the manifest does not contain yet.

        Each file is complete before the next is begun, so an interrupted listing loses nothing.

        Args:
            on_progress: called with the number of images listed so far.
            columns: schema of the values that are copied with each image.

        Raises:
            UserError: a value does not have the type of its column.
        """
        known = KnownTexts()
        for paths in self.paths():
            known.add_new(paths)
        files, next_id, seen = list(self.files), self.num_images, 0
        waiting: list[ImageRef] = []
        schema = schemas.MANIFEST.append(pa.field("columns", pa.struct(columns))) if len(columns) else schemas.MANIFEST

        def write(rows: list[ImageRef]) -> None:
            nonlocal next_id
            ids = IdRange(next_id, next_id + len(rows) - 1)
            self.folder.write(_name(ids), _to_parquet(ids, rows, schema), is_private=True)
            files.append(ids)
            next_id = ids.last + 1

        for chunk in _chunks(listing, ROWS_PER_GROUP):
            seen += len(chunk)
            waiting += [chunk[i] for i in known.add_new([item.path for item in chunk])]
            while len(waiting) >= ROWS_PER_FILE:
                write(waiting[:ROWS_PER_FILE])
                waiting = waiting[ROWS_PER_FILE:]
            if on_progress is not None:
                on_progress(seen)
        if waiting:
            write(waiting)
        return Manifest(self.folder, tuple(files))


def delete_manifest(folder: Folder) -> None:
    """Delete the files of a manifest, incomplete ones included; other files remain."""
    for name in folder.names():
        if _FILE.fullmatch(name):
            folder.delete(name)


def _name(ids: IdRange) -> str:
    return f"manifest-{ids.first:012d}-{ids.last:012d}.parquet"


def _to_parquet(ids: IdRange, rows: list[ImageRef], schema: pa.Schema) -> memoryview:
    *places, values = (list(column) for column in zip(*rows, strict=True))
    columns = {"image_id": range(ids.first, ids.last + 1)} | dict(zip(ImageRef._fields, places, strict=False))
    arrays = [pa.array(columns[field.name], field.type) for field in schemas.MANIFEST]
    if "columns" in schema.names:
        kind = schema.field("columns").type
        try:
            each = [pa.array(column, field.type) for column, field in zip(zip(*values, strict=True), kind, strict=True)]
        except pa.ArrowException as error:
            raise UserError(f"a column's values are not all of its type, {kind}: {error}") from error
        arrays.append(pa.StructArray.from_arrays(each, fields=list(kind)))
    return _parquet(pa.table(arrays, schema=schema))


def _parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP, compression="zstd")
    return memoryview(sink.getvalue())


def _chunks(items: Iterable[ImageRef], size: int) -> Iterator[list[ImageRef]]:
    chunk: list[ImageRef] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class KnownTexts:
    """A set of paths, stored as sorted 64-bit hashes: 8 bytes per path.

    With 10 million paths, the probability that any new path is mistaken for a known one is about 5 in a million.
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.int64)
        self._recent: set[int] = set()

    def add_new(self, paths: list[str]) -> list[int]:
        """Add paths and return the positions of the new ones, first occurrences only."""
        # Python's hash of a text is SipHash with 64 bits, and 15 times as fast as the functions of hashlib.
        array = np.fromiter(map(hash, paths), np.int64, len(paths))
        at = np.searchsorted(self._sorted, array)
        known = np.zeros(len(array), bool)
        inside = at < len(self._sorted)
        known[inside] = self._sorted[at[inside]] == array[inside]
        new = []
        for i, (value, is_known) in enumerate(zip(array.tolist(), known.tolist(), strict=True)):
            if not is_known and value not in self._recent:
                self._recent.add(value)
                new.append(i)
        if len(self._recent) > max(100_000, len(self._sorted) // 8):
            recent = np.fromiter(self._recent, np.int64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return new
