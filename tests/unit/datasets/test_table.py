from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captionlib.datasets import READERS, CaptionedImage, DatasetError, read_dataset


def read_csv(tmp_path: Path, text: str, **options: str) -> list[CaptionedImage]:
    (tmp_path / "captions.csv").write_text(text, encoding="utf-8")
    return read_dataset("csv", captions_file=str(tmp_path / "captions.csv"), **options)


def read_parquet(tmp_path: Path, columns: dict[str, Any], **options: str) -> list[CaptionedImage]:
    pq.write_table(pa.table(columns), tmp_path / "captions.parquet")
    return read_dataset("parquet", captions_file=str(tmp_path / "captions.parquet"), **options)


def test_csv_rows_of_an_image_are_joined(tmp_path: Path) -> None:
    text = 'caption,Path,Split\nA cat,1.jpg,train\nA dog,s3://b/2.jpg,validation\n"Cat, black",1.jpg,train\n'
    assert read_csv(tmp_path, text) == [
        CaptionedImage(f"{tmp_path}/1.jpg", ("A cat", "Cat, black"), "train"),
        CaptionedImage("s3://b/2.jpg", ("A dog",), "dev"),
    ]
    assert [record.captions for record in read_csv(tmp_path, text, split="dev")] == [("A dog",)]


def test_csv_without_splits_and_with_a_split_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("2.jpg\n")
    text = "\ufeffimage,text\r\n1.jpg,A cat\r\n\r\n2.jpg,A dog\r\n"
    assert [record.split for record in read_csv(tmp_path, text)] == [None, None]
    assert read_csv(tmp_path, text, split="test", split_file=str(tmp_path / "names.txt"), images_root="/photos") == [
        CaptionedImage("/photos/2.jpg", ("A dog",), "test")
    ]
    with pytest.raises(DatasetError, match="no images in split 'train'; it has images of no split"):
        read_csv(tmp_path, text, split="train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "captions.csv: empty; expected a header such as path,caption"),
        ("path,notes\n", "captions.csv:1: no caption column; expected one of caption, .* got path, notes"),
        (
            "path,caption\n1.jpg,A cat, black\n",
            r"captions.csv:2: 3 cells .* header has 2 .* comma needs quotes",
        ),
        ('path,caption\n1.jpg,"A\ncat"\n2.jpg,\n', r"captions.csv:4: empty caption of '2.jpg'"),
        ("path,caption\n,\n", "captions.csv:2: no image name"),
        ('path,caption\n1.jpg,"A cat\n', "captions.csv:2: not CSV: unexpected end of data"),
        (
            "path,caption,split\n1.jpg,A,train\n1.jpg,B,test\n",
            "captions.csv:3: '1.jpg' is in two splits, train and test",
        ),
    ],
)
def test_csv_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_csv(tmp_path, text)


def test_parquet_with_strings_and_with_lists(tmp_path: Path) -> None:
    expected = [CaptionedImage(f"{tmp_path}/1.jpg", ("A cat", "Cat"), "train")]
    strings = {"path": ["1.jpg", "1.jpg"], "caption": ["A cat", "Cat"], "split": ["train", "train"]}
    lists = {"split": ["train"], "file_name": ["1.jpg"], "captions": [["A cat", "Cat"]], "width": [640]}
    assert read_parquet(tmp_path, strings) == expected
    assert read_parquet(tmp_path, lists) == expected


def test_parquet_folder(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for part in range(2):
        pq.write_table(pa.table({"path": [f"{part}.jpg"], "caption": ["A cat"]}), tmp_path / f"parts/{part}.parquet")
    records = read_dataset("parquet", captions_file=str(tmp_path / "parts"))
    assert len(records) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"path": ["1.jpg", None], "caption": ["A", "B"]},
            "captions.parquet: row 2: expected a path, got None",
        ),
        (
            {"path": ["1.jpg"], "caption": pa.nulls(1)},
            "row 1: expected a caption or a list of captions, got None",
        ),
        ({"path": ["1.jpg"], "caption": [["A", None]]}, "row 1: expected a caption or a list"),
        ({"path": ["1.jpg"], "caption": [" "]}, "row 1: empty caption"),
        ({"name": ["1.jpg"]}, "captions.parquet: no path column"),
    ],
)
def test_parquet_errors_name_file_and_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_parquet(tmp_path, columns)


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("path,caption\n")
    with pytest.raises(DatasetError, match=r"x.parquet: not Parquet"):
        read_dataset("parquet", captions_file=str(tmp_path / "x.parquet"))


def test_the_kinds() -> None:
    assert list(READERS) == ["flickr8k", "flickr30k", "coco", "karpathy", "csv", "parquet"]
    with pytest.raises(ValueError, match="unknown dataset kind 'auto'; known: flickr8k"):
        read_dataset("auto", "x")
    with pytest.raises(ValueError, match="unknown split 'trian'"):
        read_dataset("csv", "x", split="trian")
    with pytest.raises(ValueError, match="say which, such as split='train'"):
        read_dataset("csv", "x", split_file="names.txt")


def test_weights_of_a_mix_by_hand(tmp_path: Path) -> None:
    table = tmp_path / "mix.csv"
    table.write_text("path,caption,split,weight\na.jpg,one,train,\na.jpg,two,train,0.25\n/else/b.jpg,three,dev,1\n")
    a, b = read_dataset("csv", captions_file=str(table), images_root="photos")
    assert (a.path, a.captions, a.weights) == ("photos/a.jpg", ("one", "two"), (1.0, 0.25))
    assert (b.path, b.weights) == ("/else/b.jpg", None)  # all count 1


def test_weights_in_parquet(tmp_path: Path) -> None:
    columns = {"path": ["a.jpg", "b.jpg"], "caption": ["one", "two"], "weight": [0.5, None]}
    pq.write_table(pa.table(columns), tmp_path / "mix.parquet")
    a, b = read_dataset("parquet", captions_file=str(tmp_path / "mix.parquet"))
    assert (a.weights, b.weights) == ((0.5,), None)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_weights_that_are_none(tmp_path: Path, weight: str) -> None:
    table = tmp_path / "mix.csv"
    table.write_text(f"path,caption,weight\na.jpg,one,{weight}\n")
    with pytest.raises(DatasetError, match=r"mix\.csv:2: the weight"):
        read_dataset("csv", captions_file=str(table))
