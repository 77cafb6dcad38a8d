"""Finds the folder of a checkpoint on this machine, and fetches one that is behind a URL."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from captionlib import cache
from captionlib.checkpoints.files import CARD, CONFIG, INT8_ENCODER, VOCABULARY, WEIGHTS, CheckpointError
from captionlib.checkpoints.read import check_checkpoint
from captionlib.errors import UserError
from captionlib.storage import inputs
from captionlib.storage.folder import Folder

DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "pretrained" / "default"
"""The checkpoint that comes with the project."""


def resolve_checkpoint(source: str | Path | None = None) -> Path:
    """Return the local folder of a checkpoint; a remote one is downloaded once.

    Args:
        source: a folder; an fsspec URL such as s3://bucket/run/best; or None or "default" for the checkpoint that comes
            with the project. Downloads are stored in $CAPTIONLIB_CACHE (default: ~/.cache/captionlib) and renewed when
            the source changes.

    Raises:
        CheckpointError: there is no checkpoint, or it could not be downloaded.
        captionlib.cache.CacheError: the cache cannot be written.
    """
    if source is None or source == "default":
        if not (DEFAULT_CHECKPOINT / CONFIG).is_file():
            raise CheckpointError(
                f"the checkpoint that ships with the project is not at {DEFAULT_CHECKPOINT}: install the project "
                "again, or give the directory of another checkpoint"
            )
        return DEFAULT_CHECKPOINT
    if isinstance(source, Path) or "://" not in source:
        return Path(source).expanduser()
    if source.startswith("file://"):
        return Path(source.removeprefix("file://"))
    return _fetch(source)


def check_checkpoint_visible(source: str) -> None:
    """Whether this machine, one of several, sees a checkpoint in a folder.

    Raises:
        UserError: it does not.
    """
    if source != "default" and "://" not in source and not os.path.isdir(source):
        raise UserError(
            f"the machine {socket.gethostname()} does not see {source}: the checkpoint must be in a folder that all "
            "machines share, or at a URL"
        )


def _fetch(url: str) -> Path:
    there = Folder.of(url)
    try:
        found = there.names()
        if not found and not there.folder_names():
            raise CheckpointError(f"no checkpoint at {url}: there is nothing")
        names = [name for name in (CONFIG, VOCABULARY, WEIGHTS, INT8_ENCODER, CARD) if name in found]
        state = [(name, inputs.version(f"{there.url}/{name}")) for name in names]
    except CheckpointError:
        raise
    except (OSError, UserError) as error:  # a wrong key, host or protocol
        raise CheckpointError(f"the checkpoint {url} could not be read: {error}") from error
    if CONFIG not in names:
        raise CheckpointError(f"no checkpoint at {url}: it holds no {CONFIG}")
    target = cache.cache_folder("checkpoints") / cache.digest(url, state)
    if target.is_dir():
        return target
    with cache.publish(target) as draft:
        for name in names:
            try:
                data = there.read(name)
            except OSError as error:
                raise CheckpointError(f"{url}/{name} could not be fetched: {error}") from error
            (draft / name).write_bytes(data)
        check_checkpoint(draft)
    return target
