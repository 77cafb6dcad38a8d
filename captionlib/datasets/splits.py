"""Selects the records of a split, by split files or by the captions file itself."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Mapping

from captionlib.datasets.files import read_names
from captionlib.datasets.records import CaptionedImage, DatasetError, some


def select(records: Mapping[str, CaptionedImage], split: str, split_file: str) -> list[CaptionedImage]:
    """Return the records that `split_file` names, in its order, marked as `split`.

    A split file may omit the extension of the names, as Flickr30k Entities does.

    Raises:
        DatasetError: the file names images without captions.
    """
    names = read_names(split_file)
    by_stem = {posixpath.splitext(name)[0]: name for name in records}
    found = [name if name in records else by_stem.get(name) for name in names]
    missing = [name for name, record in zip(names, found, strict=True) if record is None]
    if missing:
        raise DatasetError(
            f"{split_file}: {len(missing)} of {len(names)} images have no captions: {some(missing)}; "
            "is it of the same dataset as the captions file?"
        )
    return [dataclasses.replace(records[name], split=split) for name in found if name is not None]


def assign(records: Mapping[str, CaptionedImage], split_files: Mapping[str, str]) -> list[CaptionedImage]:
    """Return all records, each marked with the split whose file names it, or None.

    Raises:
        DatasetError: two files name the same image, or a file names images without captions.
    """
    chosen: dict[str, CaptionedImage] = {}
    for split, split_file in split_files.items():
        for record in select(records, split, split_file):
            other = chosen.setdefault(record.path, record)
            if other.split != split:
                raise DatasetError(f"{split_file}: {record.path!r} is in the {other.split} split too")
    return [chosen.get(record.path, record) for record in records.values()]


def keep(records: Mapping[str, CaptionedImage], split: str, where: str) -> list[CaptionedImage]:
    """Return the records of a split, for datasets whose captions file states the split of each image.

    Raises:
        DatasetError: there are none.
    """
    kept = [record for record in records.values() if split in ("all", record.split)]
    if not kept:
        found = sorted({record.split or "images of no split" for record in records.values()})
        raise DatasetError(f"{where}: no images in split {split!r}; it has {some(found) or 'none at all'}")
    return kept
