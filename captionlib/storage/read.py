"""Reads whole files or byte ranges from disk, HTTP or object storage, with retries.

`captionlib.storage.errors` explains the two kinds of failure: input faults and transport faults.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any, TypeVar

from captionlib.errors import UserError
from captionlib.storage.access import AccessSettings
from captionlib.storage.errors import AccessDenied, InputFault, TransportFault, classify_storage_error, with_retries
from captionlib.storage.http import HttpClient
from captionlib.storage.paths import is_local
from captionlib.storage.s3 import S3Objects

T = TypeVar("T")

MAX_BYTES = 2**28
"""Larger files are rejected: no image needs as much, and reading one could exhaust the memory of the worker."""


def read_bytes(path: str, size: int | None = None) -> bytes:
    """Read a whole file, with retries.

    Args:
        path: absolute path or fsspec URL.
        size: bytes according to the listing. A body of another length is retried, as truncated or as the error message
            of a storage that answers 200, unless the file has changed since.

    Raises:
        InputFault: kinds NotFound, PermissionDenied, NotAFile, FileTooLarge; for a web server also HttpError,
            TooManyRedirects and InvalidUrl.
        TransportFault: after the last retry.
        AccessDenied: the credentials were rejected.
    """
    if size is not None and size > MAX_BYTES:
        raise InputFault("FileTooLarge", f"{size} bytes, {MAX_BYTES} is the limit")

    def attempt() -> bytes:
        data = read_once(path, _inputs)
        if size is not None and len(data) != size and len(data) != _size_now(path):
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
        data: bytes = input_filesystem(path).cat_file(path, start=offset, end=offset + size)
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
        if path.startswith(("http://", "https://")):
            raise InputFault("NotFound", error.strerror or "the server has no such file") from error
        hint = "; its name is not UTF-8: rename it" if "\ufffd" in path else ""
        raise InputFault("NotFound", f"it was there when the input was listed{hint}") from error
    except PermissionError as error:
        raise _refusal(path, error) from error
    except IsADirectoryError as error:
        raise InputFault("NotAFile", "it is a folder") from error


def _refusal(path: str, error: PermissionError) -> Exception:
    """Return what a refused read means: is it the image, or all that this machine asks for?

    The answer to a HEAD request, with which s3fs begins, has no body and so no reason; that to a GET request has one.
    """
    if _is_s3(path):
        bucket, _, key = path.partition("://")[2].partition("/")
        try:
            input_filesystem(path).call_s3("get_object", Bucket=bucket, Key=key, Range="bytes=0-0")
        except Exception as reason:
            known = classify_storage_error(reason)
            if isinstance(known, (AccessDenied, TransportFault)):
                return known
        else:
            return TransportFault(errno.EACCES, f"was refused a moment ago: {error}", path)
    return InputFault("PermissionDenied", str(error))


@dataclass(frozen=True)
class Access:
    """Clients for all storages with one set of settings. Threads may share an instance."""

    settings: AccessSettings = field(default_factory=AccessSettings)
    processes: int = 1
    """Number of processes that share the limits of the settings."""
    _filesystems: dict[str, Any] = field(default_factory=dict, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @cached_property
    def s3_objects(self) -> S3Objects:
        """Return the S3 client of Arrow."""
        return S3Objects(anonymous=self.settings.anonymous, requester_pays=self.settings.requester_pays)

    @cached_property
    def http(self) -> HttpClient:
        """Return the client for web servers."""
        return HttpClient(self.settings, self.processes)

    def filesystem(self, path: str) -> Any:
        """Return the fsspec filesystem for a path or URL: one instance per protocol, without cached listings."""
        import fsspec

        # fsspec would make one instance per thread; a shared instance also shares its connections.
        protocol = "file" if is_local(path) else path.partition("://")[0]
        with self._lock:
            if protocol not in self._filesystems:
                try:
                    self._filesystems[protocol] = fsspec.filesystem(protocol, **self._options(protocol))
                except (ValueError, ImportError) as error:  # the protocol is unknown, or its package is not installed
                    raise UserError(f"{path} cannot be opened: {error}") from error
            return self._filesystems[protocol]

    def _options(self, protocol: str) -> dict[str, Any]:
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        settings = self.settings
        if protocol in ("s3", "s3a"):
            # All threads of a worker share this instance, and botocore's default of 10 connections would be too few.
            options["config_kwargs"] = {"max_pool_connections": 64, "retries": {"mode": "standard"}}
            options |= {"anon": True} if settings.anonymous else {}
            options |= {"requester_pays": True} if settings.requester_pays else {}
        elif protocol in ("gs", "gcs"):
            options |= {"token": "anon"} if settings.anonymous else {}
            options |= {"requester_pays": True} if settings.requester_pays else {}
        elif protocol in ("az", "abfs", "abfss", "adl"):
            options |= {"anon": True} if settings.anonymous else {}
        elif protocol in ("http", "https"):
            options["client_kwargs"] = {"headers": {"User-Agent": settings.user_agent}}
        return options


_outputs = Access()
_inputs = _outputs
_inputs_lock = threading.Lock()


def configure_inputs(settings: AccessSettings, processes: int = 1) -> None:
    """Set how this process reads inputs from now on. Calls with the same settings have no further effect.

    Args:
        processes: number of processes that share the limits of the settings.
    """
    global _inputs
    with _inputs_lock:
        if (settings, processes) != (_inputs.settings, _inputs.processes):
            access = Access(settings, processes)
            _ = access.http  # created once here, because it holds the circuit breakers of all hosts
            _inputs = access


def input_access() -> Access:
    """Return the clients with which this process reads inputs."""
    return _inputs


def filesystem(path: str) -> Any:
    """Return the fsspec filesystem for a path or URL of an output, without cached listings."""
    return _outputs.filesystem(path)


def input_filesystem(path: str) -> Any:
    """Return the fsspec filesystem for a path or URL of the inputs, see `AccessSettings`."""
    return _inputs.filesystem(path)


def read_once(path: str, access: Access | None = None) -> bytes:
    """Read a whole file in one attempt. Exceptions are those of the storage library."""
    access = access or _outputs
    if is_local(path):
        with open(path, "rb") as file:
            return file.read()
    if path.startswith(("http://", "https://")):
        return access.http.read(path)
    found = access.s3_objects.read(path) if _is_s3(path) else None
    if found is not None:
        return found
    data: bytes = access.filesystem(path).cat_file(path)
    if _is_s3(path):
        access.s3_objects.record_fallback()
    return data


def open_once(path: str) -> IO[bytes]:
    """Open a file of an output for random access in one attempt. Exceptions are those of the storage library."""
    found = _outputs.s3_objects.open(path) if _is_s3(path) else None
    if found is not None:
        return found
    file: IO[bytes] = filesystem(path).open(path, "rb")
    if _is_s3(path):
        _outputs.s3_objects.record_fallback()
    return file


def _is_s3(path: str) -> bool:
    return path.startswith(("s3://", "s3a://"))


def _size_now(path: str) -> int | None:
    size: int | None = input_filesystem(path).info(path).get("size")
    return size
