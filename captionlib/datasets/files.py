"""Finds and reads the files of a dataset, local or behind an fsspec URL."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from captionlib.datasets.records import DatasetError, join_path
from captionlib.storage import inputs


@dataclass(frozen=True, kw_only=True)
class Source:
    """Location of a dataset, and the requested split. Paths may be fsspec URLs."""

    root: str | None = None
    """The dataset's folder in its usual layout, for all files that are not stated explicitly."""
    captions_file: str | None = None
    images_root: str | None = None
    """The folder that image names in the captions file are relative to."""
    split: str = "all"
    """`train`, `dev`, `test` or `all`."""
    split_file: str | None = None
    """The names of the images of `split`, one per line."""


def locate(given: str | None, root: str | None, candidates: Sequence[str], what: str, setting: str) -> str:
    """Return the given path, or the first candidate of a layout that exists under `root`.

    `what` describes the file, and `setting` is the option that names another one; both are used in the error.

    Raises:
        DatasetError: there is no such file.
    """
    if given is not None:
        if not inputs.exists(given):
            raise DatasetError(f"{given}: not found; {setting} should be {what}")
        return given
    if root is None or not candidates:
        remedy = ", or root for the dataset's usual layout" if candidates else ""
        raise DatasetError(f"not given: {what}; set {setting}{remedy}")
    if not inputs.exists(root):
        raise DatasetError(f"{root}: not found; root should be the dataset's folder")
    for candidate in candidates:
        path = join_path(root, candidate)
        if inputs.exists(path):
            return path
    raise DatasetError(f"{root}: {' and '.join(candidates)} not found; that should be {what}. Or set {setting}")


def locate_images(source: Source, captions_file: str, candidates: Sequence[str], what: str) -> str:
    """Return the given folder of the images, or the first candidate of a layout that exists.

    If none exists, the root or the folder of the captions is returned: the images may not be needed, as when a decoder
    is trained on features.

    Raises:
        DatasetError: the given folder does not exist.
    """
    if source.images_root is not None:
        return locate(source.images_root, None, (), what, "images_root")
    if source.root is None:
        return posixpath.dirname(captions_file)
    folders = [join_path(source.root, candidate) for candidate in candidates]
    return next((folder for folder in folders if inputs.exists(folder)), source.root)


def read_text(path: str) -> str:
    """Read a UTF-8 file, with or without a byte order mark; `.gz`, `.bz2`, `.xz` are decompressed.

    Raises:
        DatasetError: the file does not exist, or is not UTF-8 (by line).
    """
    try:
        data = inputs.read_decompressed(path)
    except FileNotFoundError:
        raise DatasetError(f"{path}: not found") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}:{line}: not UTF-8 text; convert the file, such as with iconv") from None


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yield `(file:line, text)` of each line that is not blank."""
    # splitlines() would also split at characters that occur in captions from the web, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line.rstrip("\r")


def read_names(path: str) -> list[str]:
    """Read the image names of a split file.

    Raises:
        DatasetError: a name occurs twice, or there is none.
    """
    seen: dict[str, str] = {}
    for where, line in read_lines(path):
        name = line.strip()
        if name in seen:
            raise DatasetError(f"{where}: {name!r} is listed twice, first at {seen[name]}")
        seen[name] = where
    if not seen:
        raise DatasetError(f"{path}: empty; expected one image name per line")
    return list(seen)


def read_json_object(path: str) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        DatasetError: the file is not JSON (by line), or not an object.
    """
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data
