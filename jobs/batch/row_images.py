"""Reads the images of finished rows again, for the report and for exports."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from captionlib.masking import MASK
from captionlib.storage.errors import InputFault
from jobs.batch.manifest import Manifest
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import ImageReader, image_refs
from jobs.outputs.id_ranges import IdRange


class RowImages:
    """The images of the rows of an output. Use as a context manager.

    Args:
        image_column: image column of Parquet files; None to search for a usual name.
    """

    def __init__(self, manifest: Manifest, image_column: str | None = None) -> None:
        self.manifest, self._reader = manifest, ImageReader(image_column)

    def __enter__(self) -> RowImages:
        self._reader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def read(self, row: Mapping[str, Any]) -> bytes:
        """Return the bytes of a row's image.

        Raises:
            InputFault, TransportFault, AccessDenied: as `ImageReader.read`.
        """
        if MASK not in row["path"]:
            try:
                return self._reader.read(ImageRef(row["path"]))
            except InputFault:
                pass  # the image is inside a shard; the manifest states which one
        (image,) = image_refs(self.manifest.read(IdRange(row["image_id"], row["image_id"])))
        return self._reader.read(image)
