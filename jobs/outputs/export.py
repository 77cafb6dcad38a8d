"""Exports the finished rows to formats other than Parquet: one file each, beside the folder of rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv

from jobs.outputs.chunk_files import ChunkFiles
from jobs.storage.folder import Folder

FORMATS = ("jsonl", "csv")


def export(output: Folder, files: ChunkFiles, formats: list[str]) -> None:
    """Write `<rows>.<format>` from all rows. The file is replaced completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    for name in formats:
        write = {"jsonl": _write_jsonl, "csv": _write_csv}[name]
        with output.create(f"{files.stem}.{name}") as sink:
            write(sink, _tables(files))


def formats_there(output: Folder, files: ChunkFiles) -> list[str]:
    """Return the formats that earlier runs exported; they are kept up to date."""
    return [name for name in FORMATS if output.exists(f"{files.stem}.{name}")]


def _tables(files: ChunkFiles) -> Iterator[pa.Table]:
    return (files.read(ids) for ids in files.finished())


def _write_jsonl(sink: IO[bytes], tables: Iterator[pa.Table]) -> None:
    for table in tables:
        for batch in table.to_batches(10_000):
            lines = (json.dumps(row, ensure_ascii=False, default=_text) for row in batch.to_pylist())
            sink.write("".join(f"{line}\n" for line in lines).encode())


def _write_csv(sink: IO[bytes], tables: Iterator[pa.Table]) -> None:
    is_first = True
    for table in tables:
        flat = {field.name: _flat(table.column(field.name)) for field in table.schema}
        text = io.BytesIO()
        pyarrow.csv.write_csv(pa.table(flat), text, pyarrow.csv.WriteOptions(include_header=is_first))
        sink.write(text.getbuffer())
        is_first = False


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert a nested column to JSON texts, because CSV cannot hold it."""
    if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type):
        return column
    texts = [None if v is None else json.dumps(v, ensure_ascii=False, default=_text) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _text(value: Any) -> str:
    """Convert values that JSON cannot represent: dates to ISO 8601, bytes to hexadecimal digits."""
    to_text: Callable[[], str] | None = getattr(value, "isoformat", getattr(value, "hex", None))
    return to_text() if to_text is not None else str(value)
