from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captionlib.datasets import CaptionedImage, DatasetError, read_dataset

IMAGES = [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}]
ANNOTATIONS = [
    {"id": 1, "image_id": 3, "caption": "A cat.\n"},
    {"id": 2, "image_id": 7, "caption": "Two dogs."},
    {"id": 3, "image_id": 3, "caption": "A black cat."},
]


def write(root: Path, part: str = "train2017", **changes: Any) -> Path:
    (root / part).mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    path = root / f"annotations/captions_{part}.json"
    path.write_text(json.dumps({"images": IMAGES, "annotations": ANNOTATIONS, **changes}))
    return path


def test_captions_are_grouped_by_image(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_dataset("coco", str(tmp_path), split="train") == [
        CaptionedImage(f"{tmp_path}/train2017/7.jpg", ("Two dogs.",), "train"),
        CaptionedImage(f"{tmp_path}/train2017/3.jpg", ("A cat.", "A black cat."), "train"),
    ]


def test_all_is_the_files_that_are_there(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "val2017")
    assert [record.split for record in read_dataset("coco", str(tmp_path))] == ["train"] * 2 + ["dev"] * 2


def test_2014_is_found_where_2017_is_not(tmp_path: Path) -> None:
    write(tmp_path, "val2014")
    assert read_dataset("coco", str(tmp_path), split="dev")[0].path == f"{tmp_path}/val2014/7.jpg"


def test_an_explicit_file_is_the_split(tmp_path: Path) -> None:
    captions_file = write(tmp_path)
    records = read_dataset("coco", captions_file=str(captions_file), images_root=str(tmp_path), split="test")
    assert {record.split for record in records} == {"test"}
    assert records[0].path == f"{tmp_path}/7.jpg"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": 5}, "no list 'annotations'"),
        (
            {"images": [*IMAGES, {"id": 3, "file_name": "x.jpg"}]},
            r"images\[2\]: id 3 is there twice, of 3.jpg and x.jpg",
        ),
        ({"images": [{"id": "7", "file_name": "7.jpg"}]}, r"images\[0\]: expected id \(a number\)"),
        ({"images": [*IMAGES, {"id": 9, "file_name": "9.jpg"}]}, "1 of 3 images have no captions: 9.jpg"),
        ({"annotations": [{"image_id": 8, "caption": "x"}]}, r"annotations\[0\]: image 8 is not among"),
        ({"annotations": [{"image_id": 3, "caption": " "}]}, r"annotations\[0\]: empty caption of '3.jpg'"),
        ({"annotations": [{"image_id": 3}]}, r"annotations\[0\]: expected image_id \(a number\) and caption"),
    ],
)
def test_errors_name_file_and_entry(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(DatasetError, match=r"captions_train2017.json: " + message):
        read_dataset("coco", str(tmp_path))


def test_broken_json_is_named_by_line(tmp_path: Path) -> None:
    write(tmp_path).write_text('{"images": [],\n"annotations": [}')
    with pytest.raises(DatasetError, match=r"captions_train2017.json:2: not JSON"):
        read_dataset("coco", str(tmp_path))


def test_what_coco_does_not_have(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DatasetError, match="test captions are not published; use Karpathy's split"):
        read_dataset("coco", str(tmp_path), split="test")
    with pytest.raises(DatasetError, match=r"captions_val2017\.json"):
        read_dataset("coco", str(tmp_path), split="dev")
    with pytest.raises(DatasetError, match="no split files"):
        read_dataset("coco", str(tmp_path), split="train", split_file="names.txt")
