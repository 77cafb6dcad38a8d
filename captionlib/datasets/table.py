"""Reads captions from a CSV or Parquet table: one row per caption, or per image with a list of captions.

A table can mix several datasets: paths are relative to one root, absolute, or URLs, and each row may state its split
and its weight in training.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from captionlib.datasets import splits
from captionlib.datasets.files import Source, locate, read_text
from captionlib.datasets.records import CaptionedImage, CaptionRow, DatasetError, canonical_split, group_by_image
from captionlib.storage.errors import classify_storage_error
from captionlib.storage.read import input_filesystem

# The first name that a table has is the one that counts.
PATH_COLUMNS = ("path", "image", "image_name", "image_path", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "comment", "text")
SPLIT_COLUMN = "split"
WEIGHT_COLUMN = "weight"


def read_csv(source: Source) -> list[CaptionedImage]:
    """Read a comma-separated file with a header: columns for path and caption; optionally `split` and `weight`."""
    path = locate(source.captions_file, None, (), "a CSV file of paths and captions", "captions_file")
    return _select(csv_rows(path, read_text(path)), path, source)


def read_parquet(source: Source) -> list[CaptionedImage]:
    """Read a Parquet file or a folder of them with the same columns; captions are strings or lists of strings."""
    path = locate(source.captions_file, None, (), "Parquet of paths and captions", "captions_file")
    return _select(_parquet_rows(path), path, source)


def _select(rows: Iterator[CaptionRow], path: str, source: Source) -> list[CaptionedImage]:
    images_root = source.images_root or source.root or posixpath.dirname(path)
    records = group_by_image(rows, images_root)
    if source.split_file is not None:
        return splits.select(records, source.split, source.split_file)
    return splits.keep(records, source.split, path)


def csv_rows(path: str, text: str) -> Iterator[CaptionRow]:
    """Yield the rows of a CSV text whose header names the columns.

    Raises:
        DatasetError: there is no header, a column is missing, or a row has more or fewer cells than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) < 2 and not "".join(cells).strip():  # a blank line
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                path_at, caption_at, split_at, weight_at = _columns(header, where)
                continue
            if len(cells) != len(header):
                raise DatasetError(
                    f"{where}: {len(cells)} cells where the header has {len(header)} "
                    f'({", ".join(header)}); a caption that holds a comma needs quotes: "a, b"'
                )
            split = None if split_at is None else _split(cells[split_at], where)
            weight = 1.0 if weight_at is None else _weight(cells[weight_at], where)
            yield CaptionRow(where, cells[path_at], cells[caption_at], split, weight)
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    if header is None:
        raise DatasetError(f"{path}: empty; expected a header such as path,caption")


def _parquet_rows(path: str) -> Iterator[CaptionRow]:
    import pyarrow as pa
    import pyarrow.dataset

    filesystem = input_filesystem(path)
    try:
        dataset = pa.dataset.dataset(filesystem._strip_protocol(path), filesystem=filesystem, format="parquet")
        names = dataset.schema.names
        wanted = [None if column is None else names[column] for column in _columns(names, path)]
        table = dataset.to_table(columns=[name for name in wanted if name is not None])
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path}: not Parquet: {error}") from None
    except OSError as error:
        raise classify_storage_error(error) from error
    values = [repeat(None, len(table)) if name is None else table.column(name).to_pylist() for name in wanted]
    for number, (name, captions, split, weight) in enumerate(zip(*values, strict=True), start=1):
        where = f"{path}: row {number}"
        if not isinstance(name, str):
            raise DatasetError(f"{where}: expected a path, got {name!r}")
        for caption in _texts(captions, where):
            yield CaptionRow(where, name, caption, _split(split, where), _weight(weight, where))


def _columns(header: Sequence[str], where: str) -> tuple[int, int, int | None, int | None]:
    """Return the positions of path, caption, split and weight; the last two are optional."""
    found = []
    for kind, names in (("path", PATH_COLUMNS), ("caption", CAPTION_COLUMNS)):
        present = [name for name in names if name in header]
        if not present:
            raise DatasetError(
                f"{where}: no {kind} column; expected one of {', '.join(names)}, got {', '.join(header)}"
            )
        found.append(header.index(present[0]))
    split, weight = (header.index(name) if name in header else None for name in (SPLIT_COLUMN, WEIGHT_COLUMN))
    return found[0], found[1], split, weight


def _split(value: Any, where: str) -> str | None:
    """Parse a split; an empty cell means none."""
    return canonical_split(str(value), where) if value else None


def _weight(value: Any, where: str) -> float:
    """Parse a weight; an empty cell means 1."""
    if value is None or value == "":
        return 1.0
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DatasetError(f"{where}: the weight {value!r} is not a number") from None


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: expected a caption or a list of captions, got {value!r}")
    return texts
