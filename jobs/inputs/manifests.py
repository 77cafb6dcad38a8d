"""Reads lists of images that a person provides: a Parquet or CSV table, or a text file with one path or URL per
line.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.errors import UserError
from jobs.inputs.listing import ImageRef
from jobs.inputs.parquet import read_columns
from jobs.storage.errors import InputFault
from jobs.storage.paths import is_local
from jobs.storage.random_access import open_shard
from jobs.storage.read import input_filesystem

TABLE_EXTENSIONS = (".parquet", ".csv", ".tsv", ".txt")
PATH_COLUMNS = ("path", "url", "image_path", "image_url", "file_name", "filename", "file", "filepath", "image", "img")
"""Column names that are searched for paths or URLs by default."""


def list_table(
    path: str, columns: Sequence[str] = (), path_column: str | None = None, root: str | None = None
) -> Iterator[ImageRef]:
    """Stream the images that a table lists.

    Args:
        path: file ending in .parquet, .csv or .tsv; any other file is read as text with one path per line.
        columns: names of columns to copy into the output; the value is None where the table has no such column.
        path_column: column of paths or URLs; None to search for a usual name.
        root: folder or URL that relative paths start from; None for the table's own folder.

    Raises:
        UserError: there is no column of paths, or a row has no path; the message names the file and row.
    """
    root = root or path.rpartition("/")[0]
    for number, (text, values) in enumerate(_rows(path, columns, path_column), 1):
        if not isinstance(text, str) or not text:
            raise UserError(f"{path}: row {number} has no path")
        yield ImageRef(resolve(text, root), columns=values)


def resolve(text: str, root: str) -> str:
    """Convert a path of a table to an absolute path or URL.

    Args:
        root: folder or URL that a relative path starts from.
    """
    text = text.removeprefix("file://")
    if "://" in text:
        return text
    if text.startswith("/") or is_local(root):
        return os.path.normpath(os.path.join(os.path.abspath(os.path.expanduser(root)), text))
    return f"{root.rstrip('/')}/{text.removeprefix('./')}"


def table_schema(path: str) -> pa.Schema | None:
    """Return names and types of the columns of a table; None for a text file."""
    kind = _kind(path)
    if kind == "parquet":
        try:
            with open_shard(path) as stream:
                return pq.read_schema(stream)
        except pa.ArrowInvalid as error:
            raise InputFault("DamagedFile", f"{path} cannot be read as Parquet: {error}") from error
    if kind == "text":
        return None
    with _open_text(path) as lines:
        return pa.schema([(name, pa.string()) for name in next(csv.reader(lines, delimiter=_delimiter(path)), [])])


def _kind(path: str) -> str:
    extension = os.path.splitext(path.partition("?")[0] if "://" in path else path)[1].lower()
    return {".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}.get(extension, "text")


def _rows(path: str, columns: Sequence[str], path_column: str | None) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    schema = table_schema(path)
    if schema is None:
        with _open_text(path) as lines:
            for line in lines:
                if line.strip():
                    yield line.strip(), (None,) * len(columns)
        return
    name = _path_column(path, schema, path_column)
    if _kind(path) == "parquet":
        with open_shard(path) as stream:
            for values in read_columns(pq.ParquetFile(stream), [name, *columns]):
                yield values[0], values[1:]
        return
    with _open_text(path) as lines:
        for row in csv.DictReader(lines, delimiter=_delimiter(path)):
            yield row[name], tuple(row.get(column) for column in columns)


def _path_column(path: str, schema: pa.Schema, wanted: str | None) -> str:
    for name in PATH_COLUMNS if wanted is None else (wanted,):
        if name in schema.names and (pa.types.is_string(schema.field(name).type) or _is_other_text(schema, name)):
            return name
    missing = f"no column {wanted}" if wanted is not None else "no column that is called as paths or URLs usually are"
    raise UserError(
        f"{path} has {missing}; it has {', '.join(schema.names) or 'none'}: name the right one with --path-column"
    )


def _is_other_text(schema: pa.Schema, name: str) -> bool:
    return pa.types.is_large_string(schema.field(name).type) or pa.types.is_string_view(schema.field(name).type)


def _open_text(path: str) -> io.TextIOWrapper:
    # newline="": CSV has its own idea of where a row ends. A byte order mark is passed over.
    if is_local(path):
        return open(path, encoding="utf-8-sig", errors="replace", newline="")
    return io.TextIOWrapper(input_filesystem(path).open(path, "rb"), encoding="utf-8-sig", errors="replace", newline="")


def _delimiter(path: str) -> str:
    """Choose the delimiter: whichever of tab, semicolon and comma is most frequent in the first line."""
    with _open_text(path) as lines:
        first = lines.readline()
    return max(",\t;", key=first.count)
