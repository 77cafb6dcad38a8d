"""Reads lists of images that a person provides: a Parquet, CSV or JSON lines table, or a text file with one path or URL
per line.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.errors import UserError
from captionlib.storage.errors import with_retries
from captionlib.storage.inputs import open_input
from captionlib.storage.paths import is_local
from captionlib.storage.read import input_filesystem
from jobs.inputs.listing import ImageRef, Request, is_folder, list_files, path_of
from jobs.inputs.parquet import parquet_schema, read_columns

_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
TABLE_EXTENSIONS = (*_KINDS, ".txt")
LINES_FOR_NAMES = 1_000
"""Number of JSON lines that are searched for the names of columns."""
PATH_COLUMNS = ("path", "url", "image_path", "image_url", "file_name", "filename", "file", "filepath", "image", "img")
"""Column names that are searched for paths or URLs by default."""


class Manifests:
    """Tables or texts that list images by path or URL."""

    looked_for = "paths or URLs in tables are looked for"

    def matches(self, text: str, request: Request) -> bool:
        """Whether the name ends as that of a table does."""
        return not is_folder(text) and path_of(text).endswith(TABLE_EXTENSIONS)

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the images of all tables."""
        for file in list_files(text, TABLE_EXTENSIONS, request.left_out):
            yield from list_table(file.path, request.columns, request.path_column, request.root)

    def columns(self, text: str, request: Request) -> Mapping[str, pa.DataType]:
        """Return the columns of the first table."""
        first = next(list_files(text, TABLE_EXTENSIONS), None)
        return columns_of_table(first.path) if first is not None else {}


def columns_of_table(path: str) -> Mapping[str, pa.DataType]:
    """Return the columns of a table with their types."""
    schema = with_retries(lambda: table_schema(path))
    types = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
    return {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in types.items()}


def list_table(
    path: str, columns: Sequence[str] = (), path_column: str | None = None, root: str | None = None
) -> Iterator[ImageRef]:
    """Stream the images that a table lists.

    Args:
        path: file ending in .parquet, .csv, .tsv, .jsonl or .ndjson; any other is text with one path per line.
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
    if text.startswith("/"):
        return os.path.normpath(text)
    if is_local(root):
        return os.path.normpath(os.path.join(os.path.abspath(os.path.expanduser(root)), text))
    return f"{root.rstrip('/')}/{text.removeprefix('./')}"


def table_schema(path: str) -> pa.Schema | None:
    """Read the columns of a table and their types; None for text without columns."""
    kind = _kind(path)
    if kind == "parquet":
        return parquet_schema(path)
    if kind == "text":
        return None
    if kind == "jsonl":
        first = itertools.islice(_json_lines(path), LINES_FOR_NAMES)
        names = dict.fromkeys(name for row in first if isinstance(row, dict) for name in row)
        return pa.schema([(name, pa.string()) for name in names])
    with _open_text(path) as lines:
        return pa.schema([(name, pa.string()) for name in next(csv.reader(lines, delimiter=_delimiter(path)), [])])


def _kind(path: str) -> str:
    extension = os.path.splitext(path.partition("?")[0] if "://" in path else path)[1].lower()
    return _KINDS.get(extension, "text")


def _rows(path: str, columns: Sequence[str], path_column: str | None) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    schema = table_schema(path)
    if schema is None:
        with _open_text(path) as lines:
            for line in lines:
                if line.strip():
                    yield line.strip(), (None,) * len(columns)
        return
    kind = _kind(path)
    if kind == "jsonl":
        yield from _json_rows(path, schema, columns, path_column)
        return
    name = _path_column(path, schema, path_column)
    if kind == "parquet":
        with open_input(path) as stream:
            for values in read_columns(pq.ParquetFile(stream), [name, *columns]):
                yield values[0], values[1:]
        return
    with _open_text(path) as lines:
        for row in csv.DictReader(lines, delimiter=_delimiter(path)):
            yield row[name], tuple(row.get(column) for column in columns)


def _json_rows(
    path: str, schema: pa.Schema, columns: Sequence[str], path_column: str | None
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Rows of JSON lines: objects, or texts that are paths. Values that are no text are copied as JSON."""
    name: str | None = None
    for row in _json_lines(path):
        if isinstance(row, str):
            yield row, (None,) * len(columns)
            continue
        if not isinstance(row, dict):
            raise UserError(f"{path}: every line must be an object or a path, got {str(row)[:50]}")
        name = name or _path_column(path, schema, path_column)
        yield row.get(name), tuple(json_text(row.get(column)) for column in columns)


def json_text(value: Any) -> str | None:
    """Return a value of JSON as the text of a column."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json_lines(path: str) -> Iterator[Any]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}: line {number} is no JSON ({error})") from error


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
    # newline="" lets the CSV reader find the ends of rows; utf-8-sig skips a byte order mark.
    if is_local(path):
        return open(path, encoding="utf-8-sig", errors="replace", newline="")
    return io.TextIOWrapper(input_filesystem(path).open(path, "rb"), encoding="utf-8-sig", errors="replace", newline="")


def _delimiter(path: str) -> str:
    """Choose the delimiter: whichever of tab, semicolon and comma is most frequent in the first line."""
    with _open_text(path) as lines:
        first = lines.readline()
    return max(",\t;", key=first.count)
