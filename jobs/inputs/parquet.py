"""Parquet files that contain the bytes of images: lists their rows, and reads single images by row."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.storage.errors import InputFault, with_retries
from captionlib.storage.inputs import open_input
from jobs.inputs.listing import ImageRef, Request, is_folder, list_files, path_of
from jobs.inputs.threads import list_shards

IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image", "img", "bytes", "image_bytes", "image_data", "content")
"""Column names that are searched for the bytes of images by default."""
PARQUET_EXTENSIONS = (".parquet",)
ROWS_AT_ONCE = 1_000


def find_image_column(schema: pa.Schema, wanted: str | None) -> str | None:
    """Find the column that contains images as bytes or as a struct with `bytes`; None if there is none.

    Args:
        wanted: name given by the user; None to search for a usual name.
    """
    for name in IMAGE_COLUMNS if wanted is None else (wanted,):
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            kind = kind.field(index).type if index >= 0 else kind
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
    return None


class ParquetWithImages:
    """Parquet files with a column of images."""

    looked_for = "Parquet files with a column of images are looked for; --image-column names it"

    def matches(self, text: str, request: Request) -> bool:
        """Whether the name ends in .parquet, and the first file has such a column."""
        if is_folder(text) or not path_of(text).endswith(PARQUET_EXTENSIONS):
            return False
        first = next(list_files(text, PARQUET_EXTENSIONS), None)
        return first is not None and _has_images(first.path, request)

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the rows of all files; those without images are what img2dataset writes beside its tars."""
        files = list_files(text, PARQUET_EXTENSIONS, request.left_out)
        with_images = (file.path for file in files if _has_images(file.path, request))
        index = functools.partial(list_parquet, columns=request.columns, image_column=request.image_column)
        return list_shards(with_images, index, request)

    def columns(self, text: str, request: Request) -> Mapping[str, pa.DataType]:
        """Return the columns of the first file."""
        first = next(list_files(text, PARQUET_EXTENSIONS), None)
        if first is None:
            return {}
        schema = parquet_schema(first.path)
        types = zip(schema.names, schema.types, strict=True)
        return {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in types}


def parquet_schema(path: str) -> pa.Schema:
    """Read the schema of a Parquet file.

    Raises:
        InputFault: kind DamagedFile.
    """

    def read() -> pa.Schema:
        try:
            with open_input(path) as stream:
                return pq.read_schema(stream)
        except pa.ArrowInvalid as error:
            raise InputFault("DamagedFile", f"{path} cannot be read as Parquet: {error}") from error

    return with_retries(read)


def _has_images(path: str, request: Request) -> bool:
    return find_image_column(parquet_schema(path), request.image_column) is not None


def list_parquet(path: str, columns: Sequence[str] = (), image_column: str | None = None) -> Iterator[ImageRef]:
    """List the rows of a Parquet file with images, without reading the images."""
    with open_input(path) as stream:
        file = pq.ParquetFile(stream)
        # The format of Hugging Face `datasets`: struct<bytes, path>, where path is the original file name.
        inner = f"{find_image_column(file.schema_arrow, image_column)}.path"
        with_names = inner in {file.schema.column(i).path for i in range(len(file.schema))}
        names = _inner_paths(file, inner) if with_names else itertools.repeat(None)
        for row, (values, name) in enumerate(zip(read_columns(file, columns), names, strict=False)):
            yield ImageRef(f"{path}/{row}" + ("/" + name.strip("/") if name else ""), None, path, None, row, values)


def _inner_paths(file: pq.ParquetFile, column: str) -> Iterator[str | None]:
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield value and value["path"]


def read_columns(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns row by row; None for a missing column."""
    here = [name for name in columns if name in file.schema_arrow.names]
    if not here:
        for _ in range(file.metadata.num_rows):
            yield (None,) * len(columns)
        return
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=here):
        read = {name: batch.column(name).to_pylist() for name in here}
        nothing = [None] * batch.num_rows
        yield from zip(*(read.get(name, nothing) for name in columns), strict=True)


class ParquetImages:
    """Reads images of one file by row. Ascending rows are cheap, because preceding rows have to be decoded as well.

    Args:
        column: name found by `find_image_column`.
    """

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path, self.column = path, column
        self._open = contextlib.ExitStack()
        self._batches: Iterator[tuple[int, pa.Array]] | None = None
        self._now: tuple[int, pa.Array] = (0, pa.array([], pa.binary()))

    def read(self, row: int) -> bytes:
        """Return the bytes of the image in a row; empty if the row has none.

        Raises:
            InputFault: kind DamagedShard: the file has changed since it was listed, or cannot be decoded.
        """
        try:
            first, images = self._now
            if self._batches is None or row < first:
                self.close()
                self._batches = self._from(row)
                first, images = 0, pa.array([], pa.binary())
            while not first <= row < first + len(images):
                try:
                    first, images = self._now = next(self._batches)
                except (StopIteration, pa.ArrowInvalid) as error:
                    text = f"{self.path} cannot be read at row {row}"
                    raise InputFault("DamagedShard", f"{text}: {error}" if str(error) else text) from error
            return images[row - first].as_py() or b""
        except BaseException:
            self.close()  # after a network fault, the next call opens the file again
            raise

    def close(self) -> None:
        """Close the file if it is open."""
        self._open.close()
        self._batches = None

    def _from(self, row: int) -> Iterator[tuple[int, pa.Array]]:
        """Yield batches (first row, images), starting with the row group of `row`, decoded page by page."""
        stream = self._open.enter_context(open_input(self.path))
        file = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)
        name = find_image_column(file.schema_arrow, self.column)
        if name is None:
            raise InputFault("DamagedShard", f"{self.path} has no column of images any more")
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows <= row:
                first += rows
                continue
            for batch in file.iter_batches(16, row_groups=[group], columns=[name], use_threads=False):
                images = batch.column(0)
                yield first, images.field("bytes") if pa.types.is_struct(images.type) else images
                first += batch.num_rows
