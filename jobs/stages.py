"""The first half of a job, in Ray's CPU tasks: fetch and decode the images of a part.

Shapes: B images of a part, S side of the square input.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captionlib.images import ImageDecodeError, decode_pixels
from captionlib.transforms import to_pixels
from jobs import schemas
from jobs.failures import unforeseen
from jobs.fetch import Denied, InputFault, TransportFault, is_local
from jobs.listing import Listed
from jobs.manifest import Manifest
from jobs.outputs import PartFiles, failed_ids
from jobs.ranges import IdRange
from jobs.reader import ImageReader, listed
from jobs.storage import check_sight

if TYPE_CHECKING:
    from captionlib.config import Preprocessing

logger = logging.getLogger(__name__)

READ_THREADS_REMOTE = 16
"""A GET waits for most of its time; a dozen or two at once keep one decoding task busy."""


class Part(NamedTuple):
    """Images that are committed together."""

    ids: IdRange
    redo_errors: bool = False
    """Only those whose row has an error; the rows of the others stay."""


@dataclass(frozen=True)
class FetchAndDecode:
    """A part's ids → its pixels, or its errors."""

    manifest: Manifest
    outputs: PartFiles
    """Where the rows of earlier runs are, to do those with an error again."""
    preprocessing: Preprocessing
    threads: int
    """Images decoded at once."""
    local_roots: tuple[str, ...] = ()
    """Folders that every machine must see: without this, images elsewhere would count as not found."""
    image_column: str | None = None
    """Of Parquet files with images."""

    def __call__(self, parts: pa.Table) -> pa.Table:
        """One row of `schemas.PART` → one of `schemas.DECODED`.

        A part that meets a transport fault comes out without images and says why: it is left for later as a whole.
        """
        assert parts.num_rows == 1, f"{parts.num_rows} parts at once"
        part = parts.to_pylist()[0]
        try:
            for root in self.local_roots:
                check_sight(root, "input")
            check_sight(self.outputs.folder.parent.url, "output")
            rows = self._rows(part)
            images = self._read_all(rows)
        except (TransportFault, Denied) as error:
            status = "denied" if isinstance(error, Denied) else "deferred"
            return _put_off(part, {"status": status, "reason": str(error)})
        except OSError as error:  # a storage or a disk, which may come back
            logger.exception("images %s to %s", part["first"], part["last"])
            return _put_off(part, {"status": "deferred", "reason": f"{type(error).__name__}: {error}"})
        except Exception as error:
            # Nobody foresaw it, so nobody can say that the images are at fault: leave the part for later.
            logger.exception("images %s to %s", part["first"], part["last"])
            return _put_off(part, unforeseen(error, "decoding"))
        facts = {
            "image_id": rows.column("image_id"),
            "path": rows.column("path"),
            "width": pa.array([image.width for image in images], pa.int32()),
            "height": pa.array([image.height for image in images], pa.int32()),
            "error": pa.array([image.error for image in images], pa.string()),
        }
        if "columns" in rows.column_names:
            carried = rows.column("columns")
            facts |= {field.name: pc.struct_field(carried, field.name) for field in carried.type}
        facts_of_each = pa.StructArray.from_arrays(
            [fact.combine_chunks() if isinstance(fact, pa.ChunkedArray) else fact for fact in facts.values()],
            list(facts),
        )
        pictures = [image.pixels for image in images if image.pixels is not None]
        pixels = np.stack(pictures) if pictures else np.empty(0, np.uint8)  # (B, S, S, 3)
        row = {
            **part,
            "status": "ready",
            "side": self.preprocessing.size,
            "read_seconds": sum(image.read_seconds for image in images),
            "decode_seconds": sum(image.decode_seconds for image in images),
        }
        nested = {
            "images": pa.ListArray.from_arrays(pa.array([0, len(images)], pa.int32()), facts_of_each),
            "pixels": _one_binary(pixels),
        }
        return pa.table(
            {
                field.name: nested.get(field.name, pa.array([row.get(field.name)], field.type))
                for field in schemas.DECODED
            }
        )

    def _rows(self, part: Mapping[str, Any]) -> pa.Table:
        """The part's rows of the manifest."""
        ids = IdRange(part["first"], part["last"])
        rows = self.manifest.read(ids)
        if part["redo_errors"]:
            failed = failed_ids(self.outputs.read(ids, ["image_id", "error"]))
            rows = rows.take(pa.array([image_id - ids.first for image_id in failed], pa.int64()))
        return rows

    def _read_all(self, rows: pa.Table) -> list[_Decoded]:
        places = listed(rows)
        # Many reads may wait at once, but only `threads` images are decoded at once: each may take 0.5 GB.
        decoding = threading.Semaphore(self.threads)
        give_up = threading.Event()

        def read(place: Listed) -> _Decoded:
            if give_up.is_set():
                return _Decoded()  # the part is lost already: do not wait for a dead server once per image
            try:
                return self._read(reader, place, decoding)
            except BaseException:
                give_up.set()
                raise

        # A Parquet file is read row after row; all else that is remote, many at once.
        at_once = any(not is_local(place.path) and place.row is None for place in places)
        num_threads = max(self.threads, READ_THREADS_REMOTE) if at_once else self.threads
        with ImageReader(self.image_column) as reader, ThreadPoolExecutor(num_threads) as pool:
            images = list(pool.map(read, places))
        refused = [image.error for image in images if image.error and image.error.startswith("PermissionDenied")]
        if len(refused) == len(images) > 1:
            raise Denied(
                f"none of {len(images)} images may be read: {refused[0]}. Check the credentials and the permissions"
            )
        return images

    def _read(self, reader: ImageReader, place: Listed, decoding: threading.Semaphore) -> _Decoded:
        started = time.monotonic()
        try:
            data = reader.read(place)
        except InputFault as fault:
            return _Decoded(error=str(fault), read_seconds=time.monotonic() - started)
        read_seconds = time.monotonic() - started
        with decoding:
            started = time.monotonic()
            try:
                decoded = decode_pixels(data, target_side=self.preprocessing.size)
                pixels = to_pixels(decoded.pixels, self.preprocessing)
            except ImageDecodeError as fault:
                return _Decoded(error=str(fault), read_seconds=read_seconds, decode_seconds=time.monotonic() - started)
            return _Decoded(pixels, decoded.width, decoded.height, None, read_seconds, time.monotonic() - started)


@dataclass(frozen=True)
class _Decoded:
    pixels: np.ndarray | None = None
    """uint8 (S, S, 3)."""
    width: int | None = None
    height: int | None = None
    error: str | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def _put_off(part: Mapping[str, Any], why: Mapping[str, str]) -> pa.Table:
    row = {**part, **why, "reason": why["reason"][:500], "node": socket.gethostname()}
    row |= {"read_seconds": 0.0, "decode_seconds": 0.0}
    return pa.Table.from_pylist([row], schema=schemas.DECODED)


def _one_binary(values: np.ndarray) -> pa.Array:
    """An array of one large_binary value, without a copy of the bytes."""
    offsets = np.array([0, values.nbytes], np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), 1, buffers)
