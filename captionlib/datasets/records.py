"""The records that all dataset readers return: one per image, grouped from the rows of a captions file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from captionlib.errors import UserError

SPLITS = ("train", "dev", "test")
SPLIT_SYNONYMS = {
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    # Karpathy & Fei-Fei keep the part of COCO's val2014 that is neither dev nor test apart under this name;
    # the field trains on both, so that "train" has 113,287 images.
    "restval": "train",
}


class DatasetError(UserError):
    """A captions file is missing or contains something invalid. The message begins with the file and line."""


@dataclass(frozen=True)
class CaptionedImage:
    """An image and its reference captions."""

    path: str
    """Path or fsspec URL (`s3://bucket/x.jpg`) of the image."""
    captions: tuple[str, ...]
    """At least one caption, none empty; white space is collapsed, otherwise as written."""
    split: str | None = None
    """`train`, `dev` or `test`; None if the dataset does not state it."""
    weights: tuple[float, ...] | None = None
    """Weight of each caption in training; None if all weights are 1."""


@dataclass(frozen=True)
class CaptionRow:
    """One caption of a file."""

    where: str
    """`file:line`, for error messages."""
    name: str
    """Name of the image in the file."""
    caption: str
    split: str | None = None
    weight: float = 1.0
    """Weight of the caption in training."""


def canonical_split(name: str, where: str) -> str:
    """`val` and `validation` are `dev`; `restval` is `train`. Raises `DatasetError` for an unknown name."""
    split = SPLIT_SYNONYMS.get(name.strip().lower(), name.strip().lower())
    if split not in SPLITS:
        raise DatasetError(f"{where}: unknown split {name!r}; known: {', '.join((*SPLITS, *SPLIT_SYNONYMS))}")
    return split


def join_path(root: str | None, name: str) -> str:
    """Join `name` to `root`; an absolute path or a URL is returned unchanged."""
    if not name:
        return root or ""
    if not root or name.startswith("/") or "://" in name:
        return name
    return f"{root.rstrip('/')}/{name}"


def group_by_image(rows: Iterable[CaptionRow], images_root: str | None) -> dict[str, CaptionedImage]:
    """Group rows by image into records, keyed by image name, in order of first appearance.

    Raises:
        DatasetError: a name or caption is empty, an image is in two splits, or a weight is not positive.
    """
    captions: dict[str, list[str]] = {}
    weights: dict[str, list[float]] = {}
    splits: dict[str, str | None] = {}
    for row in rows:
        name, caption = row.name.strip(), " ".join(row.caption.split())
        if not name:
            raise DatasetError(f"{row.where}: no image name")
        if not caption:
            raise DatasetError(f"{row.where}: empty caption of {name!r}; remove the line, or write a caption")
        if not 0 < row.weight < math.inf:
            raise DatasetError(f"{row.where}: the weight {row.weight:g} is not a positive number; leave the line out")
        captions.setdefault(name, []).append(caption)
        weights.setdefault(name, []).append(row.weight)
        if splits.setdefault(name, row.split) != row.split:
            raise DatasetError(f"{row.where}: {name!r} is in two splits, {splits[name]} and {row.split}")
    return {
        name: CaptionedImage(join_path(images_root, name), tuple(texts), splits[name], _weights(weights[name]))
        for name, texts in captions.items()
    }


def _weights(weights: list[float]) -> tuple[float, ...] | None:
    return None if all(weight == 1 for weight in weights) else tuple(weights)


def some(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names for an error message."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
