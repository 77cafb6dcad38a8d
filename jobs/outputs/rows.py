"""Iterates over all rows of an output, for exports; changes the image ids of rows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captionlib.errors import ImageError
from captionlib.storage.errors import TransportFault
from jobs.outputs.chunk_files import ChunkFiles

ROWS_AT_ONCE = 10_000


class Rows:
    """The finished rows of an output. Every iteration reads the files again.

    Args:
        read_image: returns the bytes of a row's image; raises ImageError or TransportFault.
    """

    def __init__(self, files: ChunkFiles, read_image: Callable[[Mapping[str, Any]], bytes] | None = None) -> None:
        self.files, self.read_image = files, read_image

    def tables(self) -> Iterator[pa.Table]:
        """Read file after file."""
        return (self.files.read(ids) for ids in self.files.finished())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for table in self.tables():
            for batch in table.to_batches(ROWS_AT_ONCE):
                yield from batch.to_pylist()

    def captioned(self) -> Iterator[dict[str, Any]]:
        """Only rows without an error."""
        return (row for row in self if row["error"] is None)

    def with_images(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Rows without an error with the bytes of their images."""
        assert self.read_image is not None, "only for exports with images"
        missing = 0
        for row in self.captioned():
            try:
                data = self.read_image(row)
            except (ImageError, TransportFault):
                missing += 1
            else:
                yield row, data
        if missing:
            print(f"{missing:,} captioned images cannot be read any more, and are not exported", file=sys.stderr)


def renumbered(rows: pa.Table, offset: int) -> pa.Table:
    """Add a number to the image ids of rows."""
    place = rows.schema.get_field_index("image_id")
    return rows.set_column(place, rows.schema.field(place), pc.add(rows.column(place), offset))


def json_default(value: Any) -> str:
    """Convert values that JSON does not support: dates to ISO 8601, bytes to hexadecimal digits."""
    to_text: Callable[[], str] | None = getattr(value, "isoformat", getattr(value, "hex", None))
    return to_text() if to_text is not None else str(value)
