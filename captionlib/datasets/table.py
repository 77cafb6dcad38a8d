"""Captions in a plain table, CSV or Parquet: a row per caption, or per image with a list of captions."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec

from captionlib.datasets import splits
from captionlib.datasets.files import Source, locate, read_text
from captionlib.datasets.records import (
    CaptionedImage,
    CaptionRow,
    DatasetError,
    canonical_split,
    group_by_image,
)

# The first name that a table has is the one that counts.
PATH_COLUMNS = ("path", "image", "image_name", "image_path", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "captions", "comment", "text")
SPLIT_COLUMN = "split"


def read_csv(source: Source) -> list[CaptionedImage]:
    """A comma-separated file with a header: columns for path and caption, and `split` where there is one."""
    path = locate(source.captions_file, None, (), "a CSV file of paths and captions", "captions_file")
    return _select(csv_rows(path, read_text(path)), path, source)


def read_parquet(source: Source) -> list[CaptionedImage]:
    """A Parquet file or a folder of them, with the same columns; captions are strings or lists of them."""
    path = locate(source.captions_file, None, (), "Parquet of paths and captions", "captions_file")
    return _select(_parquet_rows(path), path, source)


def _select(rows: Iterator[CaptionRow], path: str, source: Source) -> list[CaptionedImage]:
    images_root = source.images_root or source.root or posixpath.dirname(path)
    records = group_by_image(rows, images_root)
    if source.split_file is not None:
        return splits.select(records, source.split, source.split_file)
    return splits.keep(records, source.split, path)


def csv_rows(path: str, text: str) -> Iterator[CaptionRow]:
    """Rows of a CSV text whose header names the columns.

    Raises:
        DatasetError: no header, a column missing, or a row with more or fewer cells than the header.
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
                path_at, caption_at, split_at = _columns(header, where)
                continue
            if len(cells) != len(header):
                raise DatasetError(
                    f"{where}: {len(cells)} cells where the header has {len(header)} "
                    f'({", ".join(header)}); a caption that holds a comma needs quotes: "a, b"'
                )
            split = None if split_at is None else _split(cells[split_at], where)
            yield CaptionRow(where, cells[path_at], cells[caption_at], split)
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    if header is None:
        raise DatasetError(f"{path}: empty; expected a header such as path,caption")


def _parquet_rows(path: str) -> Iterator[CaptionRow]:
    import pyarrow as pa
    import pyarrow.dataset

    filesystem, plain = fsspec.core.url_to_fs(path)
    try:
        dataset = pa.dataset.dataset(plain, filesystem=filesystem, format="parquet")
        columns = _columns(dataset.schema.names, path)
        names = [dataset.schema.names[column] for column in columns if column is not None]
        table = dataset.to_table(columns=names)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path}: not Parquet: {error}") from None
    row_values = zip(*(column.to_pylist() for column in table.columns), strict=True)
    for number, (name, captions, *split) in enumerate(row_values, start=1):
        where = f"{path}: row {number}"
        if not isinstance(name, str):
            raise DatasetError(f"{where}: expected a path, got {name!r}")
        for caption in _texts(captions, where):
            yield CaptionRow(where, name, caption, _split(split[0], where) if split else None)


def _columns(header: Sequence[str], where: str) -> tuple[int, int, int | None]:
    """Where the path, the caption and the split stand."""
    found = []
    for kind, names in (("path", PATH_COLUMNS), ("caption", CAPTION_COLUMNS)):
        present = [name for name in names if name in header]
        if not present:
            raise DatasetError(
                f"{where}: no {kind} column; expected one of {', '.join(names)}, got {', '.join(header)}"
            )
        found.append(header.index(present[0]))
    return found[0], found[1], header.index(SPLIT_COLUMN) if SPLIT_COLUMN in header else None


def _split(value: Any, where: str) -> str | None:
    """An empty cell is an image of no split."""
    return canonical_split(str(value), where) if value else None


def _texts(value: Any, where: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: expected a caption or a list of captions, got {value!r}")
    return texts
