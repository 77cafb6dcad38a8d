"""Bytes of an input: the first thing that a worker does with a path, and the place where two kinds of fault part.

An **input fault** (not there, no permission, too large) is a property of the image and becomes a row with an
error. A **transport fault** (time-out, reset connection, 5xx, a body cut short) is not: it is retried with back-off,
and if it goes on, the image is left for later.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from jobs.s3 import S3Objects

T = TypeVar("T")

MAX_BYTES = 2**28
"""A file larger than this is no image that could be captioned; reading it would only fill the worker's memory."""

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 16.0

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EREMCHG}
# Codes with which object stores refuse everything: the credentials are wrong or have run out, whatever the object.
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
}


class InputFault(ValueError):
    """An image that cannot be read, whoever asks and however often. `kind` is stable, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class TransportFault(OSError):
    """The way to an image is broken, not the image. Raised after the last attempt."""


class Denied(OSError):
    """The storage refuses the credentials themselves: no retry helps, and no image is at fault."""


def read_bytes(path: str, size: int | None = None) -> bytes:
    """The whole file.

    Args:
        path: absolute, or an fsspec URL.
        size: in bytes, as the listing said; a shorter body counts as cut short, unless the file did change.

    Raises:
        InputFault: kinds NotFound, PermissionDenied, NotAFile, FileTooLarge.
        TransportFault: after all attempts.
        Denied: the credentials were refused.
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
    """Some bytes of a file; fewer where it ends before them.

    Raises:
        InputFault, TransportFault, Denied: as `read_bytes`.
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
            raise Denied(
                errno.ENOTSUP, f"the server of {path} gives out whole files only: copy it to a disk or a bucket"
            )
        if len(data) < size and offset + len(data) != _size_now(path):
            raise TransportFault(errno.EIO, f"got {len(data)} of {size} bytes", path)
        return data[:size]

    return _to_fault(path, attempt)


def _to_fault(path: str, attempt: Callable[[], T]) -> T:
    """Read, with retries; that the file is not there or not for us is its own fault."""
    try:
        return with_retries(attempt)
    except (InputFault, Denied, TransportFault):
        raise
    except FileNotFoundError as error:
        hint = "; its name is not UTF-8: rename it" if "\ufffd" in path else ""
        raise InputFault("NotFound", f"it was there when the input was listed{hint}") from error
    except PermissionError as error:
        raise InputFault("PermissionDenied", str(error)) from error
    except IsADirectoryError as error:
        raise InputFault("NotAFile", "it is a folder") from error


def with_retries(action: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Do something with a storage; transport faults are retried with exponential back-off and full jitter.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError, InputFault: at once.
        Denied: at once.
        TransportFault: after the last attempt; its text is the last fault's.
    """
    for attempt in range(attempts):
        try:
            return action()
        except Exception as error:
            known = translated(error)
            if not isinstance(known, TransportFault):
                raise known from error
            if attempt == attempts - 1:
                raise known from error
            longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
            # Jitter, so that the threads of all workers do not come back to a busy server at the same moment.
            time.sleep(random.uniform(longest / 4, longest))
    raise AssertionError("unreachable")


def translated(error: Exception) -> Exception:
    """Any exception of a storage library as one of four: not there, not allowed, a folder, or a transport fault."""
    if isinstance(error, (InputFault, TransportFault, Denied, FileNotFoundError, IsADirectoryError)):
        return error
    if isinstance(error, OSError) and error.errno in _NOT_THERE:
        return FileNotFoundError(error.errno, str(error))
    if isinstance(error, PermissionError):
        code = _storage_code(error)
        if code in _BAD_CREDENTIALS:
            return Denied(errno.EACCES, f"the storage refuses the credentials ({code}: {error}): renew them")
        return error
    if type(error).__name__ == "NoCredentialsError":
        return Denied(errno.EACCES, f"no credentials for the storage ({error}): set them as its client expects")
    status = getattr(error, "status", None)  # of an aiohttp response
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, str(error))
    if status in (401, 403):
        return PermissionError(errno.EACCES, str(error))
    # All else, the unforeseen included: to leave an image for later is safe, to call it broken is not.
    return TransportFault(errno.EIO, f"{type(error).__name__}: {error}"[:500])


def _storage_code(error: BaseException | None) -> str:
    """The error code of an object store, from the exception that s3fs made of it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


# fsspec makes one instance per thread; an instance may be shared, and then so are its connections.
_filesystems: dict[str, Any] = {}
_filesystems_lock = threading.Lock()
_s3_objects = S3Objects()


def filesystem(path: str) -> Any:
    """The fsspec filesystem of a path or URL: one per protocol and process, without cached listings."""
    import fsspec

    protocol = "file" if is_local(path) else path.partition("://")[0]
    with _filesystems_lock:
        if protocol not in _filesystems:
            options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
            if protocol in ("s3", "s3a"):
                # A worker's threads share this instance; botocore's default is 10 connections.
                options["config_kwargs"] = {"max_pool_connections": 64, "retries": {"mode": "standard"}}
            _filesystems[protocol] = fsspec.filesystem(protocol, **options)
        return _filesystems[protocol]


def is_local(path: str) -> bool:
    """Whether a path is on a disk of this machine (or one that is mounted), not behind a URL."""
    return "://" not in path or path.startswith("/")


def read_once(path: str) -> bytes:
    """A whole file, in one attempt; exceptions are those of whatever storage library reads it."""
    if is_local(path):
        with open(path, "rb") as file:
            return file.read()
    found = _s3_objects.read(path) if _is_s3(path) else None
    if found is not None:
        return found
    data: bytes = filesystem(path).cat_file(path)
    if _is_s3(path):
        _s3_objects.was_wrong()
    return data


def open_once(path: str) -> IO[bytes]:
    """A file for random access; exceptions as of `read_once`."""
    found = _s3_objects.open(path) if _is_s3(path) else None
    if found is not None:
        return found
    file: IO[bytes] = filesystem(path).open(path, "rb")
    if _is_s3(path):
        _s3_objects.was_wrong()
    return file


def _is_s3(path: str) -> bool:
    return path.startswith(("s3://", "s3a://"))


def _size_now(path: str) -> int | None:
    size: int | None = filesystem(path).info(path).get("size")
    return size
