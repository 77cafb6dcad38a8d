"""Fetches and decodes the images of a chunk, in Ray's CPU tasks.

Shapes: B images of a chunk.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from captionlib.images.decode import MAX_PIXELS
from captionlib.images.transforms import ImageTransform
from captionlib.masking import masked
from captionlib.storage.access import AccessSettings
from captionlib.storage.errors import AccessDenied, TransportFault
from captionlib.storage.folder import check_path_visible
from captionlib.storage.read import configure_inputs, input_access
from jobs.batch.canaries import fetched_urls
from jobs.batch.chunk_images import ChunkImages, DecodedImage, answered_url, describe_fault, is_network_there, settle
from jobs.batch.decoding_deadline import DecodingDeadline, load_libraries
from jobs.batch.failures import log_failure, unforeseen
from jobs.batch.manifest import Manifest
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import image_refs
from jobs.inputs.settings import MAX_DECODE_SECONDS
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles, Redo, ids_to_redo
from jobs.outputs.id_ranges import IdRange

logger = logging.getLogger(__name__)

FIRST_ATTEMPT_PAUSES = 3
"""A second attempt waits for the first at most so many times the pause between the two."""


class Chunk(NamedTuple):
    """Images that are committed together."""

    ids: IdRange
    redo: Redo | Literal[""] = ""
    """Process only images whose row has such an error; the other rows are kept."""
    canaries: tuple[str, ...] = ()
    """URLs whose servers have answered this job. They are given with the last attempt: if one of the servers still
    answers, the network is working, and an image that cannot be fetched becomes a row with an error."""
    pause: float | None = None
    """None, except for a second attempt that is planned together with the first: the seconds between the two. It
    processes the rows that the first has deferred by then, if any."""


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
    max_pixels: int = MAX_PIXELS
    """Larger images are errors."""
    access: AccessSettings = field(default_factory=AccessSettings)
    processes: int = 1
    """Number of processes that run this stage concurrently and share the limits of `access`."""
    max_decode_seconds: float = MAX_DECODE_SECONDS
    """An image that takes longer to decode is an error. Time for reading it does not count."""

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Process one row of `schemas.CHUNK` into one row of `schemas.DECODED`.

        Images that cannot be fetched get an error that begins with `schemas.DEFERRED`. If none of them can be fetched,
        the whole chunk is deferred: its row contains the reason instead of images.
        """
        assert chunks.num_rows == 1, f"{chunks.num_rows} chunks at once"
        chunk = chunks.to_pylist()[0]
        configure_inputs(self.access, self.processes)
        if self.max_pixels > MAX_PIXELS:
            Image.MAX_IMAGE_PIXELS = None  # Pillow has a limit of its own, in the readers of some formats
        try:
            for root in self.local_roots:
                check_path_visible(root, "input")
            check_path_visible(self.outputs.folder.parent.url, "output")
            if chunk["pause"] is not None and not self._await_second_attempt(chunk):
                return _not_ready(chunk, {"status": "nothing", "reason": ""})
            rows = self._rows(chunk)
            places = image_refs(rows)
            canaries = self._canaries(chunk)
            if canaries:
                input_access().http.hosts.ask_again()
                is_network_there(canaries)  # closes the circuit breaker of the server that answers
            load_libraries(self.transform)
            with DecodingDeadline(self.max_decode_seconds) as deadline:
                images = self._read_all(places, deadline, is_last=bool(canaries))
            images = settle(images, places, canaries)
        except (TransportFault, AccessDenied) as error:
            status = "denied" if isinstance(error, AccessDenied) else "deferred"
            return _not_ready(chunk, {"status": status, "reason": masked(str(error))})
        except OSError as error:  # a storage or a disk, which may come back
            log_failure(logger, error, chunk)
            return _not_ready(chunk, {"status": "deferred", "reason": masked(f"{type(error).__name__}: {error}")})
        except Exception as error:
            # Nobody foresaw it, so nobody can say that the images are at fault: leave the chunk for later.
            log_failure(logger, error, chunk)
            return _not_ready(chunk, unforeseen(error, "decoding"))
        facts = {
            "image_id": rows.column("image_id"),
            "path": pa.array([masked(place.path) for place in places], pa.string()),
            "width": pa.array([image.width for image in images], pa.int32()),
            "height": pa.array([image.height for image in images], pa.int32()),
            "error": pa.array([image.error for image in images], pa.string()),
        }
        if "columns" in rows.column_names:
            carried = rows.column("columns")
            facts |= {column.name: _public(pc.struct_field(carried, column.name)) for column in carried.type}
        facts_of_each = pa.StructArray.from_arrays(
            [fact.combine_chunks() if isinstance(fact, pa.ChunkedArray) else fact for fact in facts.values()],
            list(facts),
        )
        pictures = [image.pixels for image in images if image.pixels is not None]
        deferred = [image.fault for image in images if image.fault is not None]
        row = {
            **chunk,
            "status": "ready",
            "reason": describe_fault(deferred[-1])[:500] if deferred else None,
            "deferred": len(deferred),
            "answered": answered_url(images, places),
            "warnings": deadline.warnings(),
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
        if chunk["redo"]:
            failed = ids_to_redo(self.outputs.read(ids, ["image_id", "error"]), chunk["redo"])
            rows = rows.take(pa.array([image_id - ids.first for image_id in failed], pa.int64()))
        return rows

    def _read_all(self, places: list[ImageRef], deadline: DecodingDeadline, *, is_last: bool) -> list[DecodedImage]:
        images = ChunkImages(self.transform, self.threads, self.image_column, self.max_pixels)
        return images.read(places, deadline, is_last=is_last)

    def _await_second_attempt(self, chunk: Mapping[str, Any]) -> bool:
        """Wait until the first attempt has been committed, and until enough time has passed since.

        Returns:
            Whether a second attempt is needed. It is not if all images came, or if the first failed as a whole.
        """
        ids, pause = IdRange(chunk["first"], chunk["last"]), chunk["pause"]
        patience = time.monotonic() + FIRST_ATTEMPT_PAUSES * pause
        while not self.outputs.exists(ids):  # the model may be working on it
            if time.monotonic() > patience:
                return False
            time.sleep(min(1.0, pause / 10))
        first_attempt = self.outputs.deferred_at(ids)
        if first_attempt is None:
            return False
        passed = time.time() - first_attempt  # the clocks of two machines may differ, so it may be negative
        time.sleep(min(max(0.0, pause - passed), pause))
        return True

    def _canaries(self, chunk: Mapping[str, Any]) -> list[str]:
        """Return the canaries of a last attempt; for deferred rows they are found beside these in the same file."""
        if chunk["canaries"] or chunk["redo"] != "deferred":
            return list(chunk["canaries"])
        return fetched_urls(self.outputs, self.manifest, IdRange(chunk["first"], chunk["last"]))


def _public(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Mask secrets in a passthrough column."""
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return values
    texts = [text if text is None else masked(text) for text in values.to_pylist()]
    return pa.chunked_array([pa.array(texts, values.type)])


def _not_ready(chunk: Mapping[str, Any], why: Mapping[str, str]) -> pa.Table:
    row = {**chunk, **why, "reason": why["reason"][:500], "node": socket.gethostname()}
    row |= {"read_seconds": 0.0, "decode_seconds": 0.0, "deferred": 0}
    return pa.Table.from_pylist([row], schema=schemas.DECODED)


def _one_binary(pictures: list[np.ndarray]) -> pa.Array:
    """Join arrays of uint8 into an array of one large_binary value."""
    flat = [np.ravel(picture) for picture in pictures]
    values = np.concatenate(flat) if flat else np.empty(0, np.uint8)
    offsets = np.array([0, values.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(values)])
