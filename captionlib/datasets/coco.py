"""Reads COCO captions: `captions_train2017.json` and similar files (Chen et al., "Microsoft COCO Captions", 2015)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from captionlib.datasets.files import Source, locate, locate_images, read_json_object
from captionlib.datasets.records import CaptionedImage, CaptionRow, DatasetError, group_by_image, join_path, some
from captionlib.storage import inputs

YEARS = ("2017", "2014")
PARTS = {"train": "train", "dev": "val"}


def read_coco(source: Source) -> list[CaptionedImage]:
    """COCO captions: 118,287 training and 5,000 validation images (2017) with five captions each or more.

    A captions file is a split: with `captions_file` every image in it is returned and marked with
    `source.split`. With `root`, the year is the first of 2017 and 2014 that is there, and `all` means
    those of its files that are there.

    Raises:
        DatasetError: a missing file or field, a caption of an unknown image, images without captions.
    """
    if source.split_file is not None:
        raise DatasetError(f"{source.split_file}: COCO has no split files; its captions files are the splits")
    split = None if source.split == "all" else source.split
    if source.captions_file is not None:
        images_root = locate_images(source, source.captions_file, (), "the folder of COCO's images")
        return _read_file(source.captions_file, images_root, split)
    if split == "test":
        raise DatasetError("COCO's test captions are not published; use Karpathy's split (kind 'karpathy')")
    wanted = [split] if split else list(PARTS)
    annotations = [f"annotations/captions_{PARTS[part]}{year}.json" for year in YEARS for part in wanted]
    found = locate(None, source.root, annotations, "COCO captions", "captions_file")
    year = found.removesuffix(".json")[-4:]
    records: list[CaptionedImage] = []
    for part in wanted:
        captions_file = join_path(source.root, f"annotations/captions_{PARTS[part]}{year}.json")
        if inputs.exists(captions_file):
            folder = f"{PARTS[part]}{year}"
            images_root = locate_images(source, captions_file, (folder,), "the folder of COCO's images")
            records += _read_file(captions_file, images_root, part)
    return records


def _read_file(captions_file: str, images_root: str, split: str | None) -> list[CaptionedImage]:
    data = read_json_object(captions_file)
    for key in ("images", "annotations"):
        if not isinstance(data.get(key), list):
            raise DatasetError(f"{captions_file}: no list {key!r}; expected COCO captions with images, annotations")
    names: dict[int, str] = {}
    for position, image in enumerate(data["images"]):
        where = f"{captions_file}: images[{position}]"
        image_id, name = _fields(image, ("id", "file_name"), where)
        if image_id in names:
            raise DatasetError(f"{where}: id {image_id} is there twice, of {names[image_id]} and {name}")
        names[image_id] = name
    records = group_by_image(_rows(captions_file, data["annotations"], names, split), images_root)
    bare = [name for name in names.values() if name not in records]
    if bare:
        raise DatasetError(f"{captions_file}: {len(bare)} of {len(names)} images have no captions: {some(bare)}")
    return [records[name] for name in names.values()]


def _rows(captions_file: str, annotations: list[Any], names: dict[int, str], split: str | None) -> Iterator[CaptionRow]:
    for position, annotation in enumerate(annotations):
        where = f"{captions_file}: annotations[{position}]"
        image_id, caption = _fields(annotation, ("image_id", "caption"), where)
        if image_id not in names:
            raise DatasetError(f"{where}: image {image_id} is not among the file's images")
        yield CaptionRow(where, names[image_id], caption, split)


def _fields(entry: Any, keys: tuple[str, str], where: str) -> tuple[int, str]:
    number, text = (entry.get(key) for key in keys) if isinstance(entry, dict) else (None, None)
    if not isinstance(number, int) or not isinstance(text, str):
        raise DatasetError(f"{where}: expected {keys[0]} (a number) and {keys[1]} (text), got {str(entry)[:80]}")
    return number, text
