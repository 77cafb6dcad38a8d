"""Reads and writes `run.json`: the settings and versions that made an output, its runs, and its state."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import captionlib
from captionlib.errors import UserError
from captionlib.storage.folder import Folder

NAME = "run.json"

# Packages that influence the results or the speed of a worker.
_PACKAGES = ("ray", "torch", "openvino", "pillow", "pyarrow", "numpy")


def read_record(folder: Folder) -> dict[str, Any]:
    """Read the record of an output; empty if there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        record: dict[str, Any] = folder.read_with(NAME, json.load)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder.url}/{NAME} is damaged ({error}): delete it and run again") from error
    return record


def write_record(folder: Folder, record: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write the record, replacing an existing one.

    Args:
        durable: see `Folder.write`.
    """
    folder.write(NAME, json.dumps(record, indent=2, ensure_ascii=False, default=str).encode() + b"\n", durable=durable)


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of the packages that affect results or speed, and of the packages in `more`;
    missing packages are omitted."""
    found = {"python": platform.python_version(), "captionlib": captionlib.__version__}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the current time in UTC in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def differences(there: Mapping[str, Any], asked: Mapping[str, Any], where: str = "") -> list[str]:
    """Describe how two groups of settings differ, one phrase per setting."""
    found: list[str] = []
    for key in sorted(set(there) | set(asked)):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{where}{key}.")
        elif json.dumps(old) != json.dumps(new):  # compared as JSON, because a tuple is stored as a list
            found.append(f"{where}{key} is {old} there and {new} now")
    return found
