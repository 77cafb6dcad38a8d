"""Finds, reads and opens single input files, on a disk or behind a URL, with retries.

Inputs are what a person named: images, archives, tables, datasets, features. They are read with the settings of
`configure_inputs`.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import IO

from fsspec.compression import compr
from fsspec.utils import infer_compression

from captionlib.errors import UserError
from captionlib.storage.errors import classify_storage_error, with_retries
from captionlib.storage.paths import is_local
from captionlib.storage.read import input_access, input_filesystem, read_once

BLOCK_BYTES = 2**22
"""Bytes that are read ahead in a remote file, because the members of a tar are small and it is read sequentially."""


def exists(path: str) -> bool:
    """Whether a file or folder exists.

    Raises:
        StorageError: its storage cannot be asked.
    """
    if is_local(path):
        return os.path.exists(os.path.expanduser(path))
    return bool(with_retries(lambda: input_filesystem(path).exists(path)))


def read(path: str) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError, PermissionError: the file does not exist, or may not be read.
        StorageError: its storage cannot be read.
    """
    path = os.path.expanduser(path) if is_local(path) else path
    return with_retries(lambda: read_once(path, input_access()))


def read_decompressed(path: str) -> bytes:
    """Read a whole file, and decompress it if its name ends as that of a compressed file, such as in `.gz`.

    Raises:
        UserError: the file is damaged.
        FileNotFoundError, PermissionError, StorageError: as `read`.
    """
    data, method = read(path), infer_compression(path)
    if method is None:
        return data
    try:
        return bytes(compr[method](io.BytesIO(data), mode="rb").read())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be decompressed: {error}") from error


def version(path: str) -> str:
    """Return a text that changes when the file does: from its time of modification, or its ETag.

    Raises:
        FileNotFoundError, PermissionError, StorageError: as `read`.
    """
    return str(with_retries(lambda: input_filesystem(path).ukey(path)))


@contextlib.contextmanager
def open_input(path: str) -> Iterator[IO[bytes]]:
    """Open a file for random access.

    Raises:
        FileNotFoundError, PermissionError, StorageError: as `read`; also from the file, in the `with` block.
    """
    if is_local(path):
        with open(path, "rb") as local:
            yield local
        return
    filesystem = input_filesystem(path)
    file = with_retries(lambda: filesystem.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead"))
    try:
        with file:
            yield file
    except OSError as error:
        raise classify_storage_error(error) from error
