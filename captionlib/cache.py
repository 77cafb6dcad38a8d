"""Where a machine keeps what can be made or fetched again: exported graphs, remote checkpoints, arrays of features.

Everything appears under its final name at once or not at all, so that processes share a cache without asking
each other.
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

VARIABLE = "CAPTIONLIB_CACHE"


class CacheError(ValueError):
    """The cache cannot be written, or its disk is full. The message says how to take another folder."""


def cache_folder(name: str) -> Path:
    """The folder `name` in $CAPTIONLIB_CACHE (default: ~/.cache/captionlib); it may not exist yet.

    A user without a home, as containers have them, has the default among the temporary files.
    """
    folder = Path(os.environ.get(VARIABLE) or "~/.cache/captionlib")
    try:
        return folder.expanduser() / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"captionlib-{os.getuid()}" / name


def digest(*parts: Any) -> str:
    """24 hexadecimal digits that stand for these values, which JSON must be able to hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """A new folder to write in, which is `target` from the end of the context on.

    If another process was quicker, its folder stays. After an error nothing is left behind.

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
        draft.chmod(0o755)  # mkdtemp's are for one user; a cache may be shared
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
    """One process or thread at a time; the others wait. A process that dies lets go.

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
