"""What Ray's workers do with a part of the job: fetch and decode its images, then have the model work on them.

`FetchAndDecode` runs as CPU tasks, `PartWorker` as actors that load the model once, write the part, and pass on a
receipt only.

Shapes: B images of a part, S side of the square input.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from captionlib.images import ImageDecodeError, decode_image
from captionlib.transforms import to_pixels
from jobs import schemas
from jobs.fetch import Denied, InputFault, TransportFault, is_local, read_bytes
from jobs.manifest import Manifest
from jobs.outputs import PartFiles, failed_ids, replace_rows
from jobs.ranges import IdRange

if TYPE_CHECKING:
    from captionlib.config import Preprocessing

logger = logging.getLogger(__name__)

READ_THREADS_REMOTE = 32
"""A GET waits for most of its time; a few dozen at once keep one decoding task busy."""


class Part(NamedTuple):
    """Images that are committed together."""

    ids: IdRange
    redo_errors: bool = False
    """Only those whose row has an error; the rows of the others stay."""


# --- fetch and decode -------------------------------------------------------------------------------------------


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

    def __call__(self, parts: pa.Table) -> pa.Table:
        """One row of `schemas.PART` → one of `schemas.DECODED`.

        A part that meets a transport fault comes out without images and says why: it is left for later as a whole.
        """
        assert parts.num_rows == 1, f"{parts.num_rows} parts at once"
        part = parts.to_pylist()[0]
        try:
            for root in self.local_roots:
                if not os.path.isdir(root):
                    raise Denied(
                        f"the machine {socket.gethostname()} does not see {root}: the input must be a folder that all "
                        "machines share, or a URL such as s3://…"
                    )
            rows = self._rows(part)
            images = self._read_all(rows)
        except (TransportFault, Denied) as error:
            return _put_off(part, "denied" if isinstance(error, Denied) else "deferred", str(error))
        except Exception as error:
            # Nobody foresaw it, so nobody can say that the images are at fault: leave the part for later.
            logger.exception("images %s to %s", part["first"], part["last"])
            return _put_off(part, "deferred", f"{type(error).__name__}: {error}")
        facts = pa.StructArray.from_arrays(
            [
                rows.column("image_id").combine_chunks(),
                rows.column("path").combine_chunks(),
                pa.array([image.width for image in images], pa.int32()),
                pa.array([image.height for image in images], pa.int32()),
                pa.array([image.error for image in images], pa.string()),
            ],
            ["image_id", "path", "width", "height", "error"],
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
            "images": pa.ListArray.from_arrays(pa.array([0, len(images)], pa.int32()), facts),
            "pixels": _one_binary(pixels),
        }
        return pa.table(
            [
                nested[field.name] if field.name in nested else pa.array([row.get(field.name)], field.type)
                for field in schemas.DECODED
            ],
            schema=schemas.DECODED,
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
        paths: list[str] = rows.column("path").to_pylist()
        sizes: list[int | None] = rows.column("size").to_pylist()
        # Many reads may wait at once, but only `threads` images are decoded at once: each may take 0.5 GB.
        decoding = threading.Semaphore(self.threads)
        give_up = threading.Event()

        def read(path: str, size: int | None) -> _Decoded:
            if give_up.is_set():
                return _Decoded()  # the part is lost already: do not wait for a dead server once per image
            try:
                return self._read(path, size, decoding)
            except BaseException:
                give_up.set()
                raise

        num_threads = self.threads if all(map(is_local, paths)) else max(self.threads, READ_THREADS_REMOTE)
        with ThreadPoolExecutor(num_threads) as pool:
            images = list(pool.map(read, paths, sizes))
        refused = [image.error for image in images if image.error and image.error.startswith("PermissionDenied")]
        if len(refused) == len(images) > 1:
            raise Denied(
                f"none of {len(images)} images may be read: {refused[0]}. Check the credentials and the permissions"
            )
        return images

    def _read(self, path: str, size: int | None, decoding: threading.Semaphore) -> _Decoded:
        started = time.monotonic()
        try:
            data = read_bytes(path, size)
        except InputFault as fault:
            return _Decoded(error=str(fault), read_seconds=time.monotonic() - started)
        read_seconds = time.monotonic() - started
        with decoding:
            started = time.monotonic()
            try:
                decoded = decode_image(data, target_side=self.preprocessing.size)
                pixels = to_pixels(decoded.image, self.preprocessing)
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


def _put_off(part: Mapping[str, Any], status: str, reason: str) -> pa.Table:
    row = {**part, "status": status, "reason": reason[:500], "read_seconds": 0.0, "decode_seconds": 0.0}
    return pa.Table.from_pylist([row], schema=schemas.DECODED)


def _one_binary(values: np.ndarray) -> pa.Array:
    """An array of one large_binary value, without a copy of the bytes."""
    offsets = np.array([0, values.nbytes], np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), 1, buffers)


# --- the model's part -------------------------------------------------------------------------------------------


class Processor(Protocol):
    """A model in an actor: pixels in, columns of the output out."""

    def __call__(self, pixels: np.ndarray, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        """For each of the output's folders the model's columns, B long; B may be 0.

        Args:
            pixels: uint8 (B, S, S, 3) in [0, 255], read-only.
            image_ids: B ids, for whatever is drawn at random.
        """


class ProcessorFactory(Protocol):
    """Travels to the actors, and loads the model there."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        """For each of the output's folders the schema of its rows, metadata included."""

    def load(self) -> Processor:
        """Load the model."""


class PartWorker:
    """An actor: decoded parts → the model → files in the output, and a receipt for each.

    Args:
        outputs: by folder name. The last one's file is what says that a part is finished, so it is written last.
    """

    def __init__(self, factory: ProcessorFactory, outputs: Mapping[str, PartFiles]) -> None:
        self.processor = factory.load()
        self.schemas = factory.schemas()
        self.outputs = outputs
        self.one_at_a_time = threading.Lock()  # an actor may write one part while the model works on the next
        self.node = socket.gethostname()

    def __call__(self, parts: pa.Table) -> pa.Table:
        """One row of `schemas.DECODED` → one of `schemas.RECEIPT`."""
        assert parts.num_rows == 1, f"{parts.num_rows} parts at once"
        part = parts.drop_columns(["images", "pixels"]).to_pylist()[0]
        nothing = {"done": 0, "failed": 0, "model_seconds": 0.0, "write_seconds": 0.0}
        receipt = {name: part[name] for name in schemas.RECEIPT.names if name in part}
        receipt |= nothing | {"node": self.node}
        if part["status"] == "ready":
            try:
                receipt |= self._work(part, parts.column("images")[0].values, parts.column("pixels")[0])
            except Exception as error:
                # Not committed, so not lost: the driver tries the part again, and says so if it never works.
                logger.exception("images %s to %s", part["first"], part["last"])
                receipt |= {"status": "deferred", "reason": f"{type(error).__name__}: {error}"[:500]}
        return pa.Table.from_pylist([receipt], schema=schemas.RECEIPT)

    def _work(self, part: Mapping[str, Any], images: pa.StructArray, pixels: pa.Scalar) -> dict[str, Any]:
        """Let the model work on a part, and write it.

        Args:
            images: `images` of `schemas.DECODED`.
            pixels: uint8 (B, S, S, 3) as bytes, of those without an error.
        """
        ids = IdRange(part["first"], part["last"])
        facts = {name: images.field(name) for name in ("image_id", "path", "width", "height", "error")}
        good = facts["error"].is_null().to_numpy(zero_copy_only=False)
        # (B, S, S, 3), in Ray's shared memory.
        batch = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(-1, part["side"], part["side"], 3)
        with self.one_at_a_time:
            started = time.monotonic()
            made = self.processor(batch, facts["image_id"].to_numpy()[good].tolist())
            worked = time.monotonic()
        # Row i of the part takes the model's row number `good[:i].sum()`, or null.
        places = pa.array(np.cumsum(good) - 1, pa.int64(), mask=~good)
        writing = time.monotonic()
        for name, files in self.outputs.items():
            schema = self.schemas[name]
            columns = facts | {column: values.take(places) for column, values in made[name].items()}
            table = pa.table([columns[column] for column in schema.names], schema=schema)
            files.write(ids, replace_rows(files.read(ids), table) if part["redo_errors"] else table)
        return {
            "status": "committed",
            "done": int(good.sum()),
            "failed": int((~good).sum()),
            "model_seconds": worked - started,
            "write_seconds": time.monotonic() - writing,
        }
