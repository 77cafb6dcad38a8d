"""Reads and writes whole files in a folder on a disk or in a bucket. A file appears complete or not at all.

On a disk, a file is written under a hidden temporary name and renamed. In an object store one PUT is equally atomic.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from captionlib.storage.errors import AccessDenied, with_retries
from captionlib.storage.paths import is_local
from captionlib.storage.read import filesystem, open_once, read_once

T = TypeVar("T")

READS_BEFORE_DAMAGED = 3
"""Number of times that a remote file must have made no sense."""
# Protocols with atomic writes, where a rename is unnecessary and expensive.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "memory"}


@dataclass(frozen=True)
class Folder:
    """A local folder or an fsspec URL. It holds no connection, so it can be sent to workers."""

    url: str
    """Absolute path or URL, without a trailing slash."""

    @classmethod
    def of(cls, path: str) -> Folder:
        """Create the folder for a path or URL that a person typed."""
        path = path.removeprefix("file://")
        return cls(os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a disk of this machine."""
        return is_local(self.url)

    @property
    def parent(self) -> Folder:
        """The parent folder."""
        return Folder(os.path.dirname(self.url))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def names(self) -> list[str]:
        """List the names of the files in the folder, sorted. A missing folder gives an empty list."""
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

    def folder_names(self) -> list[str]:
        """List the names of the folders in the folder, sorted. A missing folder gives an empty list."""
        if self.is_local:
            try:
                return sorted(entry.name for entry in os.scandir(self.url) if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []
        try:
            found = with_retries(lambda: filesystem(self.url).ls(self.url, detail=True))
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(item["name"].rstrip("/")) for item in found if item["type"] == "directory")

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        return with_retries(lambda: read_once(f"{self.url}/{name}"))

    def write(self, name: str, data: bytes | memoryview, *, durable: bool = True, is_private: bool = False) -> None:
        """Write a whole file, replacing an existing one.

        Args:
            durable: wait until the data is on the disk, so that it survives a power failure.
            is_private: on a disk, readable by its owner only.

        Raises:
            PermissionError, TransportFault: the file could not be written.
        """
        with_retries(lambda: self._write(name, data, durable, is_private))

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for writing in pieces. It gets its final name when the `with` block ends without an error."""
        target, hidden = f"{self.url}/{name}", f"{self.url}/.{name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        if not self.is_local:
            with filesystem(self.url).transaction, filesystem(self.url).open(target, "wb") as file:
                yield file
            return
        os.makedirs(self.url, exist_ok=True)
        with _replacing(target, hidden, durable=True) as file:
            yield file

    def delete(self, name: str) -> None:
        """Delete a file; a missing file is not an error."""

        def delete() -> None:
            if self.is_local:
                os.unlink(f"{self.url}/{name}")
            else:
                filesystem(self.url).rm_file(f"{self.url}/{name}")

        with contextlib.suppress(FileNotFoundError):
            with_retries(delete)

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        found: bool = with_retries(lambda: filesystem(self.url).exists(f"{self.url}/{name}"))
        return found

    def read_with(self, name: str, read: Callable[[IO[bytes]], T]) -> T:
        """Return the result of `read` on a file opened for random access, so that only the needed bytes are
        transferred.

        Args:
            read: called with the open file, and again after a transport fault. It raises ValueError, as Arrow does, for
                bytes that make no sense; these may be the error message of a storage that answers 200, so they are read
                again before the file counts as damaged.

        Raises:
            ValueError: the file is damaged.
            FileNotFoundError: the file does not exist.
        """
        tries_left = 1 if self.is_local else READS_BEFORE_DAMAGED

        def attempt() -> T | _Damaged:
            nonlocal tries_left
            with open_once(f"{self.url}/{name}") as file:
                try:
                    return read(file)
                except ValueError as error:
                    tries_left -= 1
                    if tries_left:
                        raise
                    return _Damaged(error)

        found = with_retries(attempt)
        if isinstance(found, _Damaged):
            raise found.error
        return found

    def check_writable(self) -> None:
        """Create the folder, then write and delete a test file in it.

        Raises:
            OSError: this failed.
        """
        name = f".check-{uuid.uuid4().hex}"
        self.write(name, b"captionlib")
        self.delete(name)

    def _write(self, name: str, data: bytes | memoryview, durable: bool, is_private: bool) -> None:
        target = f"{self.url}/{name}"
        hidden = f"{self.url}/.{name}.{uuid.uuid4().hex[:8]}{TEMPORARY}"
        if self.is_local:
            os.makedirs(self.url, exist_ok=True)
            with _replacing(target, hidden, durable, is_private) as file:
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
def _replacing(target: str, hidden: str, durable: bool, is_private: bool = False) -> Iterator[IO[bytes]]:
    """Open a local file under a hidden name and rename it to `target` when the `with` block ends without an error."""
    try:
        mode = 0o600 if is_private else 0o666  # the umask restricts it further
        with open(hidden, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(hidden, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(hidden)


def check_path_visible(folder: str, what: str) -> None:
    """Check that this machine sees a folder that the other machines of the job see.

    Args:
        folder: local path or URL; URLs are assumed to be visible everywhere.
        what: role of the folder, such as "input", for the error message.

    Raises:
        AccessDenied: the folder does not exist on this machine.
    """
    if is_local(folder) and not os.path.isdir(folder):
        raise AccessDenied(
            f"the machine {socket.gethostname()} does not see {folder}: the {what} must be a folder that all machines "
            "share, or a URL such as s3://…"
        )


TEMPORARY = ".tmp"
"""Suffix of incomplete files. Their names also start with a dot, so that readers ignore them."""
