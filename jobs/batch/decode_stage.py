"""Fetches and decodes the images of a chunk, in Ray's CPU tasks.

Shapes: B images of a chunk.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captionlib.images.decode import ImageDecodeError
from captionlib.images.transforms import ImageTransform
from jobs.batch.failures import unforeseen
from jobs.batch.manifest import Manifest
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import ImageReader, image_refs
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles, failed_ids
from jobs.outputs.id_ranges import IdRange
from jobs.storage.errors import AccessDenied, InputFault, TransportFault
from jobs.storage.folder import check_path_visible
from jobs.storage.read import is_local

logger = logging.getLogger(__name__)

READ_THREADS_REMOTE = 16
"""A GET request mostly waits; a dozen or two concurrent requests keep one decoding task busy."""


class Chunk(NamedTuple):
    """Images that are committed together."""

    ids: IdRange
    redo_errors: bool = False
    """Process only images whose row has an error; the other rows are kept."""


@dataclass(frozen=True)
class DecodeStage:
    """Turns the ids of a chunk into pixels, or into errors."""

    manifest: Manifest
    outputs: ChunkFiles
    """Rows of earlier runs, to find the images with an error."""
    transform: ImageTransform
    """Decodes the bytes of an image file into the pixels that the model needs."""
    threads: int
    """Number of images that are decoded concurrently."""
    local_roots: tuple[str, ...] = ()
    """Folders that every machine must see; otherwise images would be reported as not found."""
    image_column: str | None = None
    """Image column of Parquet files."""

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Process one row of `schemas.CHUNK` into one row of `schemas.DECODED`.

        After a transport fault the whole chunk is deferred: its row contains the reason instead of images.
        """
        assert chunks.num_rows == 1, f"{chunks.num_rows} chunks at once"
        chunk = chunks.to_pylist()[0]
        try:
            for root in self.local_roots:
                check_path_visible(root, "input")
            check_path_visible(self.outputs.folder.parent.url, "output")
            rows = self._rows(chunk)
            images = self._read_all(rows)
        except (TransportFault, AccessDenied) as error:
            status = "denied" if isinstance(error, AccessDenied) else "deferred"
            return _deferred(chunk, {"status": status, "reason": str(error)})
        except OSError as error:  # a storage or a disk, which may come back
            logger.exception("images %s to %s", chunk["first"], chunk["last"])
            return _deferred(chunk, {"status": "deferred", "reason": f"{type(error).__name__}: {error}"})
        except Exception as error:
            # Nobody foresaw it, so nobody can say that the images are at fault: leave the chunk for later.
            logger.exception("images %s to %s", chunk["first"], chunk["last"])
            return _deferred(chunk, unforeseen(error, "decoding"))
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
        row = {
            **chunk,
            "status": "ready",
            "heights": [picture.shape[0] for picture in pictures],
            "widths": [picture.shape[1] for picture in pictures],
            "side": self.transform.side,
            "read_seconds": sum(image.read_seconds for image in images),
            "decode_seconds": sum(image.decode_seconds for image in images),
        }
        nested = {
            "images": pa.ListArray.from_arrays(pa.array([0, len(images)], pa.int32()), facts_of_each),
            "pixels": _one_binary(pictures),
        }
        return pa.table(
            {
                field.name: nested.get(field.name, pa.array([row.get(field.name)], field.type))
                for field in schemas.DECODED
            }
        )

    def _rows(self, chunk: Mapping[str, Any]) -> pa.Table:
        """Return the chunk's rows of the manifest."""
        ids = IdRange(chunk["first"], chunk["last"])
        rows = self.manifest.read(ids)
        if chunk["redo_errors"]:
            failed = failed_ids(self.outputs.read(ids, ["image_id", "error"]))
            rows = rows.take(pa.array([image_id - ids.first for image_id in failed], pa.int64()))
        return rows

    def _read_all(self, rows: pa.Table) -> list[_Decoded]:
        places = image_refs(rows)
        # Many reads may wait at once, but only `threads` images are decoded at once: each may take 0.5 GB.
        decoding = threading.Semaphore(self.threads)
        give_up = threading.Event()

        def read(place: ImageRef) -> _Decoded:
            if give_up.is_set():
                return _Decoded()  # the chunk is lost already: do not wait for a dead server once per image
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
            raise AccessDenied(
                f"none of {len(images)} images may be read: {refused[0]}. Check the credentials and the permissions"
            )
        return images

    def _read(self, reader: ImageReader, place: ImageRef, decoding: threading.Semaphore) -> _Decoded:
        started = time.monotonic()
        try:
            data = reader.read(place)
        except InputFault as fault:
            return _Decoded(error=str(fault), read_seconds=time.monotonic() - started)
        read_seconds = time.monotonic() - started
        with decoding:
            started = time.monotonic()
            try:
                decoded = self.transform(data)
            except ImageDecodeError as fault:
                return _Decoded(error=str(fault), read_seconds=read_seconds, decode_seconds=time.monotonic() - started)
            return _Decoded(
                decoded.pixels, decoded.width, decoded.height, None, read_seconds, time.monotonic() - started
            )


@dataclass(frozen=True)
class _Decoded:
    pixels: np.ndarray | None = None
    """HWC uint8."""
    width: int | None = None
    height: int | None = None
    error: str | None = None
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


def _deferred(chunk: Mapping[str, Any], why: Mapping[str, str]) -> pa.Table:
    row = {**chunk, **why, "reason": why["reason"][:500], "node": socket.gethostname()}
    row |= {"read_seconds": 0.0, "decode_seconds": 0.0}
    return pa.Table.from_pylist([row], schema=schemas.DECODED)


def _one_binary(pictures: list[np.ndarray]) -> pa.Array:
    """Join arrays of uint8 into an array of one large_binary value."""
    flat = [np.ravel(picture) for picture in pictures]
    values = np.concatenate(flat) if flat else np.empty(0, np.uint8)
    offsets = np.array([0, values.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(values)])
