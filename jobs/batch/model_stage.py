"""Runs the model on decoded chunks and writes their rows, in Ray's actors.

Shapes: B images of a chunk, S side of the square input.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captionlib.errors import CaptionlibWarning
from captionlib.masking import masked
from captionlib.storage.errors import AccessDenied
from captionlib.storage.folder import check_path_visible
from jobs.batch.failures import log_failure, unforeseen
from jobs.batch.prometheus import Metrics
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles, replace_rows
from jobs.outputs.id_ranges import IdRange
from jobs.outputs.sidecar import Sidecar

logger = logging.getLogger(__name__)


class Processor(Protocol):
    """A model in an actor: pixels → columns of the output."""

    overlaps: bool
    """Whether two threads may call it concurrently, so that one batch is encoded while another is decoded into
    words."""

    def __call__(
        self, pixels: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]
    ) -> Mapping[str, Mapping[str, pa.Array]]:
        """Return the model's columns for each folder of the output, each of length B; B may be 0.

        A column `error` states why the model has no result for an image.

        Args:
            pixels: uint8 (B, S, S, 3) in [0, 255], read-only; B arrays (H, W, 3) if the job's transform does not
                make squares of one size.
            image_ids: B ids, which seed random choices.
        """


class ProcessorFactory(Protocol):
    """Is sent to the actors and loads the model there."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schema of the rows, with metadata, for each folder of the output."""

    def load(self) -> Processor:
        """Load the model."""


@dataclass(frozen=True)
class PassthroughColumns:
    """A factory whose rows also contain the columns that are copied from the manifest."""

    factory: ProcessorFactory
    columns: pa.Schema

    def schemas(self) -> Mapping[str, pa.Schema]:
        """Return the schemas of the factory, extended by the copied columns."""
        return {
            name: pa.schema([*schema, *self.columns], schema.metadata)
            for name, schema in self.factory.schemas().items()
        }

    def load(self) -> Processor:
        """Load the model."""
        return self.factory.load()


class ModelStage:
    """An actor that runs the model on decoded chunks, writes the rows, and returns a receipt for each chunk.

    Args:
        outputs: files by folder name, all in one parent folder. The last one is written last, because its files mark a
            chunk as finished.
        sidecar: writes each caption beside its image as well.
    """

    def __init__(
        self,
        factory: ProcessorFactory,
        outputs: Mapping[str, ChunkFiles],
        sidecar: Sidecar | None = None,
    ) -> None:
        self.warnings: list[str] = []
        _keep_warnings(self.warnings)
        self.processor = factory.load()
        self.schemas = factory.schemas()
        self.outputs, self.sidecar = outputs, sidecar
        self.output = next(iter(outputs.values())).folder.parent
        self.metrics = Metrics(self.output.url)
        # An actor may write one chunk while the model works on the next.
        self.turn = contextlib.nullcontext() if self.processor.overlaps else threading.Lock()
        self.node = socket.gethostname()

    def __call__(self, chunks: pa.Table) -> pa.Table:
        """Process one row of `schemas.DECODED` into one row of `schemas.RECEIPT`."""
        assert chunks.num_rows == 1, f"{chunks.num_rows} chunks at once"
        chunk = chunks.drop_columns(["images", "pixels"]).to_pylist()[0]
        nothing = {"done": 0, "failed": 0, "model_seconds": 0.0, "write_seconds": 0.0}
        receipt = {name: chunk[name] for name in schemas.RECEIPT.names if name in chunk}
        receipt |= nothing | {"node": chunk["node"] or self.node}
        receipt |= self._result(chunk, chunks)
        own = [self.warnings.pop(0) for _ in range(len(self.warnings))]
        receipt["warnings"] = [*(chunk["warnings"] or ()), *own]
        return pa.Table.from_pylist([receipt], schema=schemas.RECEIPT)

    def _result(self, chunk: Mapping[str, Any], chunks: pa.Table) -> dict[str, Any]:
        """Return the fields of the receipt that depend on how the chunk went."""
        if chunk["status"] != "ready":
            return {}
        try:
            check_path_visible(self.output.url, "output")  # otherwise this machine would write to its own disk
        except AccessDenied as error:
            return {"status": "denied", "reason": str(error)}
        steps = ["the model"]
        try:
            done = self._work(chunk, chunks.column("images")[0].values, chunks.column("pixels")[0], steps)
        except AccessDenied as error:
            # A server that denies access denies it for every image, but the next write to the output may succeed.
            status = "denied" if steps[-1] == "the model" else "deferred"
            return {"status": status, "reason": masked(str(error))[:500]}
        except OSError as error:  # the storage or the disk may be available again later
            return {"status": "deferred", "reason": masked(f"{type(error).__name__}: {error}")[:500]}
        except Exception as error:
            # The chunk is not committed, so the driver tries it again and reports it if it never succeeds.
            log_failure(logger, error, chunk)
            return unforeseen(error, steps[-1])
        self.metrics.count({**chunk, **done})
        return done

    def _work(
        self, chunk: Mapping[str, Any], images: pa.StructArray, pixels: pa.Scalar, steps: list[str]
    ) -> dict[str, Any]:
        """Run the model on a chunk and write the rows.

        Args:
            images: `images` of `schemas.DECODED`.
            pixels: `pixels` of `schemas.DECODED`, only of images without an error.
            steps: receives the name of each step when it begins, for error messages.
        """
        ids = IdRange(chunk["first"], chunk["last"])
        facts = {field.name: images.field(field.name) for field in images.type}
        batch = _pictures(chunk, np.frombuffer(pixels.as_buffer(), np.uint8))
        good = facts["error"].is_null().to_numpy(zero_copy_only=False)
        steps.append("the model")
        with self.turn:
            started = time.monotonic()
            made = self.processor(batch, facts["image_id"].to_numpy()[good].tolist())
            worked = time.monotonic()
        # Row i of the chunk takes row `good[:i].sum()` of the model's output, or null if the image has an error.
        places = pa.array(np.cumsum(good) - 1, pa.int64(), mask=~good)
        writing = time.monotonic()
        made = {name: {c: values.take(places) for c, values in columns.items()} for name, columns in made.items()}
        steps.append("writing")
        for name, files in self.outputs.items():
            schema = self.schemas[name]
            columns = {**facts, **made[name]}
            columns["error"] = errors = pc.coalesce(facts["error"], columns["error"])
            table = pa.table([columns[column] for column in schema.names], schema=schema)
            if self.sidecar is not None:
                captioned = table.filter(errors.is_null())
                self.sidecar.write(zip(*(captioned.column(c).to_pylist() for c in ("path", "caption")), strict=True))
            files.write(ids, replace_rows(files.read(ids), table) if chunk["redo"] else table)
        return {
            "status": "committed",
            "done": errors.null_count,
            "failed": len(errors) - errors.null_count - chunk["deferred"],
            "decode_seconds": chunk["decode_seconds"],
            "model_seconds": worked - started,
            "write_seconds": time.monotonic() - writing,
        }


def _keep_warnings(kept: list[str]) -> None:
    """Keep the project's own warnings of this process for the receipts, because a worker's output is not shown."""
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, CaptionlibWarning):
            kept.append(str(message))
        else:
            show_others(message, category, *rest, **more)

    warnings.showwarning = show


def _pictures(chunk: Mapping[str, Any], values: np.ndarray) -> np.ndarray | list[np.ndarray]:
    """Return the images of a chunk without copying them: (B, S, S, 3), or B arrays (H, W, 3) of different sizes."""
    if chunk["side"] is not None:
        return values.reshape(-1, chunk["side"], chunk["side"], 3)
    ends = np.cumsum([3 * h * w for h, w in zip(chunk["heights"], chunk["widths"], strict=True)], dtype=np.int64)
    pieces = np.split(values, ends[:-1]) if len(ends) else []
    sizes = zip(pieces, chunk["heights"], chunk["widths"], strict=True)
    return [piece.reshape(height, width, 3) for piece, height, width in sizes]
