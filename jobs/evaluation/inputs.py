"""Reads captions and references, and matches them image by image."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.datasets import CaptionedImage, read_dataset
from captionlib.datasets.files import read_json_object
from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from captionlib.storage.read import filesystem
from jobs.outputs.chunk_files import ChunkFiles

Match = Literal["name", "path"]

# `COCO_val2014_000000000042.jpg`, and 2017's `000000000042.jpg`.
_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})\.jpg")


class CaptionRow(NamedTuple):
    """One caption of the job or of a results file."""

    path: str
    caption: str | None
    """None if the image could not be captioned."""


@dataclass(frozen=True)
class Pair:
    """An image with its caption and its references."""

    path: str
    """Path of the image according to the captions."""
    reference_path: str
    """Path of the same image according to the dataset."""
    caption: str
    references: Sequence[str]


@dataclass
class Matched:
    """Images that have both a caption and references, and counts of the others."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    """Pairs by the common name or path."""
    num_other_captions: int = 0
    """Number of captions of images without references; they are ignored."""
    uncaptioned: list[str] = field(default_factory=list)
    """Images with references but without a caption."""


def read_references(
    kind: str, path: str, *, split: str, split_file: str | None, images_root: str | None
) -> list[CaptionedImage]:
    """Read a dataset's references. `path` is its folder or its captions file.

    Raises:
        UserError: as `captionlib.datasets.read_dataset`.
    """
    is_table = kind in ("karpathy", "csv", "parquet")
    if not is_table and filesystem(path).isdir(path):
        return read_dataset(kind, path, split=split, split_file=split_file, images_root=images_root)
    # The folder of the images matters only for the thumbnails in the report, and captions usually state better paths.
    folder = images_root or posixpath.dirname(path) or "."
    return read_dataset(kind, split=split, split_file=split_file, captions_file=path, images_root=folder)


def read_captioned_images(flag: str, text: str) -> list[CaptionedImage]:
    """Read the images and captions of a flag whose value is KIND,PATH,SPLIT or KIND,PATH,SPLIT,IMAGES.

    Raises:
        UserError: the text has another form, or the data set is faulty.
    """
    parts = text.split(",")
    if len(parts) not in (3, 4):
        raise UserError(f"{flag} {text}: expected KIND,PATH,SPLIT or KIND,PATH,SPLIT,IMAGES")
    kind, path, split = parts[:3]
    images_root = parts[3] if len(parts) == 4 else None
    return read_references(kind, path, split=split, split_file=None, images_root=images_root)


def read_captions(path: str, numbered: Callable[[], Mapping[int, str]]) -> Iterator[CaptionRow]:
    """Read captions from a folder of Parquet files, a Parquet file, or JSON in the format of COCO results.

    Args:
        path: the folder or file.
        numbered: returns the image path of each image number in COCO results.

    Raises:
        UserError: the file has none of these formats, or lacks a column or key.
    """
    fs = filesystem(path)
    if fs.isdir(path):
        return _parquet_folder(Folder.of(path))
    with fs.open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            file.seek(0)
            return _caption_columns(pq.read_table(file), path)
        file.seek(0)
        return _coco_results(path, file.read(), numbered)


def coco_numbers(kind: str, path: str, references: Sequence[CaptionedImage]) -> dict[int, str]:
    """Return the path of each COCO image by its number.

    Raises:
        UserError: the references are not from COCO.
    """
    if kind == "coco" and not filesystem(path).isdir(path):
        # The reader returns one record per image, in the same order.
        images = read_json_object(path)["images"]
        return {image["id"]: record.path for image, record in zip(images, references, strict=True)}
    found = ((_COCO_NAME.fullmatch(posixpath.basename(record.path)), record.path) for record in references)
    names = {int(name[1]): path for name, path in found if name is not None}
    if not names:
        raise UserError(
            "the captions name their images by number, as COCO does, but the references are not COCO's: give "
            "--kind coco with its captions file, or file names as image_id"
        )
    return names


def match(captions: Iterator[CaptionRow], references: Sequence[CaptionedImage], how: Match) -> Matched:
    """Match captions and references by image, in the order of the references.

    Raises:
        UserError: two images on one side have the same name, or nothing matches.
    """
    by_key: dict[str, CaptionedImage] = {}
    for record in references:
        other = by_key.setdefault(_key(record.path, how), record)
        if other is not record:
            raise UserError(_same_name("references", other.path, record.path))
    rows: dict[str, CaptionRow] = {}
    matched = Matched()
    example = None
    for row in captions:
        example = example or row.path
        key = _key(row.path, how)
        if key not in by_key:
            matched.num_other_captions += 1
        elif rows.setdefault(key, row) is not row:
            raise UserError(_same_name("captions", rows[key].path, row.path))
    for key, record in by_key.items():
        row_found = rows.get(key)
        if row_found is None or row_found.caption is None:
            matched.uncaptioned.append(key)
        else:
            matched.pairs[key] = Pair(row_found.path, record.path, row_found.caption, record.captions)
    if example is None:
        raise UserError("there are no captions to evaluate")
    if not rows:
        raise UserError(
            "no image has both a caption and references: captions are of images such as "
            f"{example!r}, references of such as {references[0].path!r}. Choose another dataset or split, or "
            f"another --match than {how}"
        )
    return matched


def _key(path: str, how: Match) -> str:
    return posixpath.basename(path) if how == "name" else path


def _same_name(side: str, one: str, other: str) -> str:
    if one == other:
        return f"{other!r} occurs twice among the {side}: remove one of them"
    return f"{one!r} and {other!r} are both among the {side}: compare whole paths with --match path"


def _parquet_folder(folder: Folder) -> Iterator[CaptionRow]:
    if (folder / "captions").names():  # the output folder of the job was given instead of its subfolder with the rows
        folder = folder / "captions"
    chunks = ChunkFiles(folder, "captions")
    # Only finished files of the job are read, because a killed run may leave unfinished ones beside them.
    finished = chunks.finished()
    if finished:
        for ids in finished:
            yield from _caption_columns(chunks.read(ids), folder.url)
        return
    names = [name for name in folder.names() if name.endswith(".parquet") and not name.startswith((".", "_"))]
    if not names:
        raise UserError(f"{folder.url}: no Parquet files; expected the caption job's output")
    for name in names:
        yield from _caption_columns(folder.read_with(name, pq.read_table), f"{folder.url}/{name}")


def _caption_columns(table: pa.Table, where: str) -> Iterator[CaptionRow]:
    for column in ("path", "caption"):
        if column not in table.column_names:
            raise UserError(f"{where}: no column {column!r}, only {', '.join(table.column_names)}")
    for batch in table.select(["path", "caption"]).to_batches():
        yield from map(CaptionRow, batch["path"].to_pylist(), batch["caption"].to_pylist())


def _coco_results(path: str, data: bytes, numbered: Callable[[], Mapping[int, str]]) -> Iterator[CaptionRow]:
    try:
        results = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path}: neither Parquet nor JSON ({error})") from None
    if not isinstance(results, list):
        raise UserError(f"{path}: expected COCO's results form, a list of image_id and caption")
    names: Mapping[int, str] | None = None
    for position, result in enumerate(results):
        found = result if isinstance(result, dict) else {}
        image, caption = found.get("image_id"), found.get("caption")
        if not isinstance(image, (int, str)) or not isinstance(caption, str):
            raise UserError(f"{path}: entry {position} has no image_id or no caption: {str(result)[:80]}")
        if isinstance(image, int):
            names = numbered() if names is None else names
            image = names.get(image, f"image {image}")
        yield CaptionRow(image, caption)
