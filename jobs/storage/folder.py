"""The output's folder, on a disk or in a bucket: whole files under their final name, or nothing.

A file is written to a hidden temporary name and renamed; in an object store it is one PUT, which is as atomic.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from jobs.storage.errors import AccessDenied, with_retries
from jobs.storage.read import filesystem, is_local, open_once, read_once

T = TypeVar("T")

# Protocols in which an object appears complete or not at all, so that no rename is needed (nor cheap).
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "memory"}


@dataclass(frozen=True)
class Folder:
    """A folder or an fsspec URL. Holds no connection, so it travels to the workers as it is."""

    url: str
    """Absolute path, or URL, without a slash at its end."""

    @classmethod
    def of(cls, path: str) -> Folder:
        """The folder of a path that a person typed."""
        path = path.removeprefix("file://")
        return cls(os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return is_local(self.url)

    @property
    def parent(self) -> Folder:
        """The folder that it lies in."""
        return Folder(os.path.dirname(self.url))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def names(self) -> list[str]:
        """Names of the files in the folder, sorted; empty if there is no such folder."""
        if self.is_local:
            try:
                return sorted(entry.name for entry in os.scandir(self.url) if entry.is_file())
            except FileNotFoundError:
                return []
        try:
            found = with_retries(lambda: filesystem(self.url).ls(self.url, detail=True))
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(item["name"]) for item in found if item["type"] == "file")

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: no such file.
        """
        return with_retries(lambda: read_once(f"{self.url}/{name}"))

    def write(self, name: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Write a whole file, replacing one of that name.

        Args:
            durable: wait until it is on the disk, so that not even a power cut takes it away.

        Raises:
            PermissionError, TransportFault: it could not be written.
        """
        with_retries(lambda: self._write(name, data, durable))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write piece by piece, which takes its name at the end of the `with`, if that ends well."""
        target, hidden = f"{self.url}/{name}", f"{self.url}/.{name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        if not self.is_local:
            with filesystem(self.url).transaction, filesystem(self.url).open(target, "wb") as file:
                yield file
            return
        with _replacing(target, hidden, durable=True) as file:
            yield file

    def delete(self, name: str) -> None:
        """Delete a file; that it is not there any more is fine."""

        def delete() -> None:
            if self.is_local:
                os.unlink(f"{self.url}/{name}")
            else:
                filesystem(self.url).rm_file(f"{self.url}/{name}")

        with contextlib.suppress(FileNotFoundError):
            with_retries(delete)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        found: bool = with_retries(lambda: filesystem(self.url).exists(f"{self.url}/{name}"))
        return found

    def read_with(self, name: str, read: Callable[[IO[bytes]], T]) -> T:
        """What `read` makes of a file by random access: Parquet's footer and single columns are read without the rest.

        Args:
            read: is called again where the storage fails under it.

        Raises:
            ValueError: `read` found the file to be damaged.
            FileNotFoundError: no such file.
        """

        def attempt() -> T | _Damaged:
            with open_once(f"{self.url}/{name}") as file:
                try:
                    return read(file)
                except ValueError as error:  # Arrow's word for bytes that make no sense
                    return _Damaged(error)

        found = with_retries(attempt)
        if isinstance(found, _Damaged):
            raise found.error
        return found

    def check_writable(self) -> None:
        """Make the folder, and write and delete a file in it.

        Raises:
            OSError: it cannot be done.
        """
        name = f".check-{uuid.uuid4().hex}"
        self.write(name, b"captionlib")
        self.delete(name)

    def _write(self, name: str, data: bytes | memoryview, durable: bool) -> None:
        target = f"{self.url}/{name}"
        hidden = f"{self.url}/.{name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        if self.is_local:
            os.makedirs(self.url, exist_ok=True)
            with _replacing(target, hidden, durable) as file:
                file.write(data)
            return
        fs: Any = filesystem(self.url)
        if self.url.partition("://")[0] in _OBJECT_STORES:
            fs.pipe_file(target, bytes(data))
            return
        fs.makedirs(self.url, exist_ok=True)
        fs.pipe_file(hidden, bytes(data))
        fs.mv(hidden, target)


@dataclass(frozen=True)
class _Damaged:
    error: ValueError


@contextlib.contextmanager
def _replacing(target: str, hidden: str, durable: bool) -> Iterator[IO[bytes]]:
    """A local file under a hidden name, which takes the place of the target if the `with` ends well."""
    try:
        with open(hidden, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(hidden, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)


def check_path_visible(folder: str, what: str) -> None:
    """This machine sees a folder that the job's other machines see.

    Args:
        folder: a URL is taken to be seen by all.
        what: it is to the job, for the message.

    Raises:
        AccessDenied: it does not.
    """
    if is_local(folder) and not os.path.isdir(folder):
        raise AccessDenied(
            f"the machine {socket.gethostname()} does not see {folder}: the {what} must be a folder that all machines "
            "share, or a URL such as s3://…"
        )


TEMPORARY = ".tmp"
"""What the name of a half-written file ends with; it also begins with a dot, so readers pass over it."""
