"""The cache of a machine for everything that can be recreated: exported graphs, remote checkpoints, arrays of features.

An entry appears under its final name complete or not at all, so that processes can share a cache without
coordination.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captionlib.errors import UserError

VARIABLE = "CAPTIONLIB_CACHE"


class CacheError(UserError):
    """The cache cannot be written, or its disk is full. The message states how to choose another folder."""


def cache_folder(name: str) -> Path:
    """Return the folder `name` in $CAPTIONLIB_CACHE (default: ~/.cache/captionlib). It may not exist yet.

    For a user without a home directory, as in containers, the default is in the folder of temporary files.
    """
    folder = Path(os.environ.get(VARIABLE) or "~/.cache/captionlib")
    try:
        return folder.expanduser() / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"captionlib-{os.getuid()}" / name


def digest(*parts: Any) -> str:
    """Return 24 hexadecimal digits that identify these values, which must be representable as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Create a temporary folder that becomes `target` when the context ends without an error.

    If another process was faster, its folder is kept.

    Raises:
        CacheError: the cache cannot be written, or its disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cache_error(target.parent, error) from error
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp allows only its own user, but a cache may be shared
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _cache_error(target.parent, error) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads. The lock of a process that dies is released.

    Raises:
        CacheError: the cache cannot be written.
    """
    from filelock import FileLock

    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except OSError as error:
        raise _cache_error(path.parent, error) from error
    try:
        yield
    finally:
        held.release()


def _cache_error(folder: Path, error: OSError) -> CacheError:
    return CacheError(
        f"{folder} cannot be written ({error.strerror}): make room there, or set {VARIABLE} to a folder elsewhere"
    )
