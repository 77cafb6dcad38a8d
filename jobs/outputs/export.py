"""Exports the finished rows to formats other than Parquet: one table row for each format.

To add one, write a function that makes a file or a folder of all rows, and add a row to `EXPORTS`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv

from captionlib.storage.folder import Folder
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.image_exports import write_imagefolder, write_webdataset
from jobs.outputs.rows import Rows, json_default

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")
"""A file of COCO, with the number of the image."""


@dataclass(frozen=True)
class Export:
    """A format."""

    name: str
    """Of the file or folder that is written, behind the stem."""
    write: Callable[[Folder, str, Rows], None]
    """Write the file or folder (output, name, rows), completely or not at all."""
    is_folder: bool = False
    """Folders hold images as well. They are written only when the user asks for it; files are kept up to date."""

    def target(self, files: ChunkFiles) -> str:
        """Name in the output."""
        return self.name if self.is_folder else f"{files.stem}{self.name}"


def export(
    output: Folder,
    files: ChunkFiles,
    formats: list[str],
    read_image: Callable[[Mapping[str, Any]], bytes] | None = None,
) -> None:
    """Write all rows in some formats. A file is replaced completely or not at all.

    Args:
        formats: names in `EXPORTS`.
        read_image: returns the bytes of a row's image, for formats with images.

    Raises:
        OSError: it cannot be written.
    """
    for name in formats:
        EXPORTS[name].write(output, EXPORTS[name].target(files), Rows(files, read_image))


def formats_there(output: Folder, files: ChunkFiles) -> list[str]:
    """Return the formats that earlier runs exported; they are kept up to date."""
    return [name for name, kind in EXPORTS.items() if not kind.is_folder and output.exists(kind.target(files))]


def delete_exports(output: Folder, files: ChunkFiles) -> None:
    """Delete what earlier runs exported."""
    for kind in EXPORTS.values():
        if not kind.is_folder:
            output.delete(kind.target(files))
            continue
        folder = output / kind.name
        for name in folder.names():
            folder.delete(name)


def _write_jsonl(output: Folder, name: str, rows: Rows) -> None:
    with output.create(name) as sink:
        for row in rows:
            sink.write(f"{json.dumps(row, ensure_ascii=False, default=json_default)}\n".encode())


def _write_csv(output: Folder, name: str, rows: Rows) -> None:
    with output.create(name) as sink:
        _write_csv_tables(sink, rows.tables())


def _write_coco(output: Folder, name: str, rows: Rows) -> None:
    """The results format of COCO: a list of {"image_id", "caption"}; other images than COCO's have their file name."""
    with output.create(name) as sink:
        separator = "["
        for row in rows.captioned():
            base = row["path"].rpartition("/")[2]
            number = _COCO_NAME.fullmatch(base)
            entry = {"image_id": int(number[1]) if number else base, "caption": row["caption"]}
            sink.write(f"{separator}{json.dumps(entry, ensure_ascii=False)}".encode())
            separator = ",\n"
        sink.write(b"]\n" if separator != "[" else b"[]\n")


def _write_csv_tables(sink: IO[bytes], tables: Iterator[pa.Table]) -> None:
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
    texts = [None if v is None else json.dumps(v, ensure_ascii=False, default=json_default) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


EXPORTS: Mapping[str, Export] = {
    "jsonl": Export(".jsonl", _write_jsonl),
    "csv": Export(".csv", _write_csv),
    "coco": Export(".coco.json", _write_coco),
    "webdataset": Export("webdataset", write_webdataset, is_folder=True),
    "imagefolder": Export("imagefolder", write_imagefolder, is_folder=True),
}
"""By the name for `--export`."""
