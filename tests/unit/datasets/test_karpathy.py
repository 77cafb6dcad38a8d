from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captionlib.datasets import CaptionedImage, DatasetError, read_dataset


def image(name: str, split: str, *captions: str, **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions], **more}


def write(root: Path, *images: dict[str, Any]) -> str:
    path = root / "dataset_coco.json"
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return str(path)


def test_folders_and_splits(tmp_path: Path) -> None:
    captions_file = write(
        tmp_path,
        image("1.jpg", "train", "A cat.", "Cat.", filepath="train2014"),
        image("2.jpg", "restval", "A dog.", filepath="val2014"),
        image("3.jpg", "val", "A cow.", filepath="val2014"),
        image("4.jpg", "test", "A hen.", filepath="val2014"),
    )
    root = str(tmp_path)
    assert read_dataset("karpathy", root, captions_file=captions_file, split="train") == [
        CaptionedImage(f"{root}/train2014/1.jpg", ("A cat.", "Cat."), "train"),
        CaptionedImage(f"{root}/val2014/2.jpg", ("A dog.",), "train"),
    ]
    splits = [record.split for record in read_dataset("karpathy", root, captions_file=captions_file)]
    assert splits == ["train", "train", "dev", "test"]


def test_flickr_files_have_no_folder(tmp_path: Path) -> None:
    captions_file = write(tmp_path, image("1.jpg", "val", "A cat."))
    records = read_dataset("karpathy", captions_file=captions_file, images_root=str(tmp_path), split="dev")
    assert records == [CaptionedImage(f"{tmp_path}/1.jpg", ("A cat.",), "dev")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (image("1.jpg", "train", "Again."), r"images\[1\]: '1.jpg' is there twice, first at .*images\[0\]"),
        (image("2.jpg", "train"), r"images\[1\]: '2.jpg' has no captions"),
        (image("2.jpg", "train", ""), r"images\[1\]: empty caption of '2.jpg'"),
        (image("2.jpg", "dogs", "x"), r"images\[1\]: unknown split 'dogs'; known: train, dev, test, val"),
        (
            {"filename": "2.jpg", "split": "val"},
            r"images\[1\]: expected filename, split and sentences.*'sentences'",
        ),
    ],
)
def test_errors_name_file_and_entry(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    captions_file = write(tmp_path, image("1.jpg", "train", "A cat."), entry)
    with pytest.raises(DatasetError, match="dataset_coco.json: " + message):
        read_dataset("karpathy", str(tmp_path), captions_file=captions_file)


def test_an_absent_split_is_an_error(tmp_path: Path) -> None:
    captions_file = write(tmp_path, image("1.jpg", "train", "A cat."))
    with pytest.raises(DatasetError, match=r"no images in split 'test'; it has train"):
        read_dataset("karpathy", str(tmp_path), captions_file=captions_file, split="test")
    with pytest.raises(DatasetError, match=r"not given: Karpathy's JSON.*set captions_file$"):
        read_dataset("karpathy", str(tmp_path))
