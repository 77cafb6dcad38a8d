"""Reads images with reference captions: standard datasets or tables of your own."""

from __future__ import annotations

from collections.abc import Callable

from captionlib.datasets.coco import read_coco
from captionlib.datasets.files import Source
from captionlib.datasets.flickr import read_flickr8k, read_flickr30k
from captionlib.datasets.karpathy import read_karpathy
from captionlib.datasets.objects import read_objects
from captionlib.datasets.records import CaptionedImage, DatasetError, canonical_split
from captionlib.datasets.table import read_csv, read_parquet
from captionlib.errors import UserError

__all__ = ["READERS", "CaptionedImage", "DatasetError", "Source", "read_dataset", "read_objects"]

READERS: dict[str, Callable[[Source], list[CaptionedImage]]] = {
    "flickr8k": read_flickr8k,
    "flickr30k": read_flickr30k,
    "coco": read_coco,
    "karpathy": read_karpathy,
    "csv": read_csv,
    "parquet": read_parquet,
}


def read_dataset(
    kind: str,
    root: str | None = None,
    *,
    split: str = "all",
    captions_file: str | None = None,
    images_root: str | None = None,
    split_file: str | None = None,
) -> list[CaptionedImage]:
    """Reads a dataset's captions; opens no image. Every path may be an fsspec URL such as `s3://bucket/x`.

    Args:
        kind: a key of `READERS`.
        root: the dataset's folder in its usual layout, such as `Images/`, `Flickr8k.token.txt` and
            `Flickr_8k.trainImages.txt` for Flickr8k. The other paths, where given, take precedence.
        split: `train`, `dev` (also `val`), `test` or `all`.
        captions_file: the file of captions. Needed for the kinds `karpathy`, `csv` and `parquet`.
        images_root: the folder that the names in the captions file are relative to.
        split_file: names of the images of `split`, one per line; not for the kinds `coco` and `karpathy`.

    Returns:
        One record per image, each with at least one caption. The order is that of the split file where
        there is one, otherwise that of the captions file.

    Raises:
        DatasetError: (a `ValueError`) a missing file and what it should be; a wrong line by file and number.
        UserError: an unknown `kind` or `split`.
    """
    if kind not in READERS:
        raise UserError(f"unknown dataset kind {kind!r}; known: {', '.join(READERS)}")
    if split != "all":
        split = canonical_split(split, "split")
    elif split_file is not None:
        raise UserError(f"split_file {split_file!r} names the images of one split: say which, such as split='train'")
    source = Source(root=root, captions_file=captions_file, images_root=images_root, split=split, split_file=split_file)
    return READERS[kind](source)
