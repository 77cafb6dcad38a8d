"""Opens Parquet files and tars for random access, on a disk or behind a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO

from jobs.storage.paths import is_local
from jobs.storage.read import input_filesystem

BLOCK_BYTES = 2**22
"""Bytes that are read ahead in a remote tar, because its members are small and it is read sequentially."""


@contextlib.contextmanager
def open_shard(path: str) -> Iterator[IO[bytes]]:
    """Open a tar or Parquet file for random access, on a disk or behind a URL."""
    if is_local(path):
        with open(path, "rb") as local:
            yield local
        return
    with input_filesystem(path).open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead") as remote:
        yield remote
