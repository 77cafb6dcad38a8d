"""The files of a checkpoint: their names, `config.json`, and the fingerprint of all that can change a caption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from captionlib.errors import UserError

FORMAT_VERSION = 2
COMPRESSED_FORMAT_VERSION = 3
"""Version of checkpoints with matrices in 8-bit integers (see `captionlib.checkpoints.eight_bits`). Versions of the
project that cannot read these refuse it.
"""
CONFIG, VOCABULARY, WEIGHTS, CARD = "config.json", "vocabulary.json", "model.safetensors", "model_card.md"
INT8_ENCODER = "encoder_int8.onnx"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another version. The message names the file and what to do."""


def checkpoint_fingerprint(directory: str | Path) -> str:
    """Return 16 hexadecimal digits that identify weights, vocabulary and model settings, but not search settings."""
    return fingerprint(Path(directory), read_json(Path(directory)))


def fingerprint(directory: Path, config: dict[str, Any]) -> str:
    """Return the fingerprint of the files of a folder, whose `config.json` has these contents."""
    digest = hashlib.sha256(json.dumps(config.get("model"), sort_keys=True).encode())
    if config.get("confidence") is not None:
        digest.update(json.dumps(config["confidence"], sort_keys=True).encode())
    for name in (VOCABULARY, WEIGHTS):
        digest.update(existing_file(directory, name).read_bytes())
    if (directory / INT8_ENCODER).is_file():
        digest.update((directory / INT8_ENCODER).read_bytes())
    return digest.hexdigest()[:16]


def read_json(directory: Path) -> dict[str, Any]:
    """Read `config.json` as it is, after checking its version."""
    path = existing_file(directory, CONFIG)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"it is no checkpoint's {CONFIG}") from error
    if version not in (FORMAT_VERSION, COMPRESSED_FORMAT_VERSION):
        raise CheckpointError(
            f"{path} is of format {version!r} and this version of the project reads formats "
            f"{FORMAT_VERSION} and {COMPRESSED_FORMAT_VERSION}: use the version that wrote it, or train anew"
        )
    return dict(data)


def existing_file(directory: Path, name: str) -> Path:
    """Return the path of a file that must exist."""
    path = directory / name
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint at {directory}: give the directory that holds {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {name}: it is no checkpoint, or not all of one")
    return path


def damaged(path: Path, what: str) -> CheckpointError:
    """Create the error for a file that is not as it was written."""
    return CheckpointError(f"{path} is damaged ({what}): copy the checkpoint again")
