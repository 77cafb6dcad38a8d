"""Reads whole files or byte ranges from disk, HTTP or object storage, with retries.

`jobs.storage.errors` explains the two kinds of failure: input faults and transport faults.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import IO, Any, TypeVar

from captionlib.errors import UserError
from jobs.storage.errors import AccessDenied, InputFault, TransportFault, with_retries
from jobs.storage.s3 import S3Objects

T = TypeVar("T")

MAX_BYTES = 2**28
"""Larger files are rejected: no image needs as much, and reading one could exhaust the memory of the worker."""


def read_bytes(path: str, size: int | None = None) -> bytes:
    """Read a whole file, with retries.

    Args:
        path: absolute path or fsspec URL.
        size: bytes according to the listing. A shorter body is retried as truncated, unless the file has changed since.

    Raises:
        InputFault: kinds NotFound, PermissionDenied, NotAFile, FileTooLarge.
        TransportFault: after the last retry.
        AccessDenied: the credentials were rejected.
    """
    if size is not None and size > MAX_BYTES:
        raise InputFault("FileTooLarge", f"{size} bytes, {MAX_BYTES} is the limit")

    def attempt() -> bytes:
        data = read_once(path)
        if size is not None and len(data) < size and len(data) != _size_now(path):
            raise TransportFault(errno.EIO, f"got {len(data)} of {size} bytes", path)
        return data

    return _to_fault(path, attempt)


def read_range(path: str, offset: int, size: int) -> bytes:
    """Read `size` bytes from `offset` on, or fewer at the end of the file.

    Raises:
        InputFault, TransportFault, AccessDenied: as `read_bytes`.
    """
    if size > MAX_BYTES:
        raise InputFault("FileTooLarge", f"{size} bytes, {MAX_BYTES} is the limit")

    def attempt() -> bytes:
        if is_local(path):
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        data: bytes = filesystem(path).cat_file(path, start=offset, end=offset + size)
        if len(data) > size and offset:
            raise AccessDenied(
                errno.ENOTSUP, f"the server of {path} does not support byte ranges: copy the file to a disk or a bucket"
            )
        if len(data) < size and offset + len(data) != _size_now(path):
            raise TransportFault(errno.EIO, f"got {len(data)} of {size} bytes", path)
        return data[:size]

    return _to_fault(path, attempt)


def _to_fault(path: str, attempt: Callable[[], T]) -> T:
    """Read with retries, and convert a missing or forbidden file into an `InputFault`."""
    try:
        return with_retries(attempt)
    except (InputFault, AccessDenied, TransportFault):
        raise
    except FileNotFoundError as error:
        hint = "; its name is not UTF-8: rename it" if "\ufffd" in path else ""
        raise InputFault("NotFound", f"it was there when the input was listed{hint}") from error
    except PermissionError as error:
        raise InputFault("PermissionDenied", str(error)) from error
    except IsADirectoryError as error:
        raise InputFault("NotAFile", "it is a folder") from error


# fsspec makes one instance per thread; an instance may be shared, and then so are its connections.
_filesystems: dict[str, Any] = {}
_filesystems_lock = threading.Lock()
_s3_objects = S3Objects()


def filesystem(path: str) -> Any:
    """Return the fsspec filesystem for a path or URL: one instance per protocol and process, without cached
    listings.
    """
    import fsspec

    protocol = "file" if is_local(path) else path.partition("://")[0]
    with _filesystems_lock:
        if protocol not in _filesystems:
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if protocol in ("s3", "s3a"):
                # A worker's threads share this instance; botocore's default is 10 connections.
                options["config_kwargs"] = {"max_pool_connections": 64, "retries": {"mode": "standard"}}
            try:
                _filesystems[protocol] = fsspec.filesystem(protocol, **options)
            except (ValueError, ImportError) as error:  # unknown, or its package is not installed
                raise UserError(f"{path} cannot be opened: {error}") from error
        return _filesystems[protocol]


def is_local(path: str) -> bool:
    """Whether a path is on a local or mounted disk rather than a URL."""
    return "://" not in path or path.startswith("/")


def read_once(path: str) -> bytes:
    """Read a whole file in one attempt. Exceptions are those of the storage library."""
    if is_local(path):
        with open(path, "rb") as file:
            return file.read()
    found = _s3_objects.read(path) if _is_s3(path) else None
    if found is not None:
        return found
    data: bytes = filesystem(path).cat_file(path)
    if _is_s3(path):
        _s3_objects.record_fallback()
    return data


def open_once(path: str) -> IO[bytes]:
    """Open a file for random access in one attempt. Exceptions are those of the storage library."""
    found = _s3_objects.open(path) if _is_s3(path) else None
    if found is not None:
        return found
    file: IO[bytes] = filesystem(path).open(path, "rb")
    if _is_s3(path):
        _s3_objects.record_fallback()
    return file


def _is_s3(path: str) -> bool:
    return path.startswith(("s3://", "s3a://"))


def _size_now(path: str) -> int | None:
    size: int | None = filesystem(path).info(path).get("size")
    return size
