"""Karpathy's splits: `dataset_flickr8k.json`, `dataset_flickr30k.json`, `dataset_coco.json`.

The splits by which the field compares (Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating
Image Descriptions", CVPR 2015).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from captionlib.datasets import splits
from captionlib.datasets.files import Source, locate, locate_images, read_json_object
from captionlib.datasets.records import CaptionedImage, CaptionRow, DatasetError, canonical_split, group_by_image


def read_karpathy(source: Source) -> list[CaptionedImage]:
    """Images below `images_root` (or `root`); for COCO that is the folder above `train2014` and `val2014`.

    `train` includes `restval`, `dev` is the file's `val`.

    Raises:
        DatasetError: a missing file or field, an empty caption, an image that is there twice.
    """
    if source.split_file is not None:
        raise DatasetError(f"{source.split_file}: Karpathy's file holds the splits itself; leave split_file out")
    captions_file = locate(
        source.captions_file, None, (), "Karpathy's JSON, such as dataset_coco.json,", "captions_file"
    )
    images_root = locate_images(source, captions_file, (), "the folder of the images")
    images = read_json_object(captions_file).get("images")
    if not isinstance(images, list):
        raise DatasetError(f"{captions_file}: no list 'images'; expected one of Karpathy's dataset_*.json files")
    records = group_by_image(_rows(captions_file, images), images_root)
    return splits.keep(records, source.split, captions_file)


def _rows(captions_file: str, images: list[Any]) -> Iterator[CaptionRow]:
    seen: dict[str, str] = {}
    for position, image in enumerate(images):
        where = f"{captions_file}: images[{position}]"
        try:
            # Only COCO's file states the folder of each image (filepath).
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            split = canonical_split(image["split"], where)
            captions = [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{where}: expected filename, split and sentences with raw text; wrong or missing: {error}"
            ) from None
        if name in seen:
            raise DatasetError(f"{where}: {name!r} is there twice, first at {seen[name]}")
        if not captions:
            raise DatasetError(f"{where}: {name!r} has no captions")
        seen[name] = where
        for caption in captions:
            yield CaptionRow(where, name, caption, split)
