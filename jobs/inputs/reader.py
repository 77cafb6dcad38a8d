"""Reads the bytes of single images, whether they are separate files, members of tars or rows of Parquet files."""

from __future__ import annotations

import contextlib
import tarfile
import threading
from collections import defaultdict

import pyarrow as pa

from captionlib.storage.errors import InputFault, with_retries
from captionlib.storage.read import read_bytes, read_range
from jobs.inputs.listing import ImageRef
from jobs.inputs.parquet import ParquetImages

HEADER_BYTES = 512
"""Size of the header before each member of a tar."""


def image_refs(rows: pa.Table) -> list[ImageRef]:
    """Convert rows of the manifest to `ImageRef`s, without the copied columns."""
    names = [name for name in ImageRef._fields if name != "columns"]
    return [ImageRef(*values) for values in zip(*(rows.column(name).to_pylist() for name in names), strict=True)]


class ImageReader:
    """Reads images one by one. Threads may share an instance. Use it as a context manager.

    Args:
        image_column: image column of Parquet files; None to search for a usual name.
    """

    def __init__(self, image_column: str | None = None) -> None:
        self.image_column = image_column
        self._files: dict[str, ParquetImages] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(Exception):
                file.close()

    def read(self, image: ImageRef) -> bytes:
        """Read the bytes of an image.

        Raises:
            InputFault, TransportFault, AccessDenied: as `captionlib.storage.read.read_bytes`.
            InputFault: kind DamagedShard, for a member of a damaged tar.
        """
        if image.shard is None:
            return read_bytes(image.path, image.size)
        if image.row is not None:
            return self._from_parquet(image.shard, image.row)
        if image.offset is None or image.size is None:
            raise InputFault("DamagedShard", "the rest of the file cannot be read: repair it and run the command again")
        return _from_tar(image.shard, image.offset, image.size)

    def _from_parquet(self, path: str, row: int) -> bytes:
        with self._lock:
            lock = self._locks[path]
            if path not in self._files:
                self._files[path] = ParquetImages(path, self.image_column)
        try:
            with lock:
                return with_retries(lambda: self._files[path].read(row))
        except FileNotFoundError as error:
            raise InputFault("NotFound", "the shard was there when the input was listed") from error
        except PermissionError as error:
            raise InputFault("PermissionDenied", str(error)) from error


def _from_tar(path: str, offset: int, size: int) -> bytes:
    """Read a member and its header; the header shows whether the tar has changed since it was listed."""
    data = read_range(path, offset - HEADER_BYTES, HEADER_BYTES + size)
    try:
        header = tarfile.TarInfo.frombuf(data[:HEADER_BYTES], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        header = None
    if header is None or header.size != size or len(data) != HEADER_BYTES + size:
        raise InputFault(
            "DamagedShard", f"{path} has changed since it was listed: give --overwrite to start from the beginning"
        )
    return data[HEADER_BYTES:]
