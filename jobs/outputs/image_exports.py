"""Exports that contain the images, for training programs."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import Any

from captionlib.images.formats import IMAGE_ENDINGS, find_format
from captionlib.storage.folder import Folder
from jobs.outputs.rows import Rows, json_default

SAMPLES_PER_SHARD = 10_000


def write_webdataset(output: Folder, name: str, rows: Rows) -> None:
    """Tars with `<image id>.jpg`, `.txt` (the caption) and `.json` (the row) for each captioned image."""
    folder = output / name
    samples = rows.with_images()
    shard, is_there = 0, True
    while is_there:
        is_there = False
        with folder.create(f"{shard:05d}.tar") as sink, tarfile.open(fileobj=sink, mode="w|") as tar:
            for _, (row, data) in zip(range(SAMPLES_PER_SHARD), samples, strict=False):
                is_there = True
                key = f"{row['image_id']:09d}"
                _add(tar, f"{key}{_ending(row['path'], data)}", data)
                _add(tar, f"{key}.txt", row["caption"].encode())
                _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False, default=json_default).encode())
        shard += 1
    for later in folder.names():  # the last file, which is empty, and files of an earlier run
        if later.endswith(".tar") and later >= f"{max(1, shard - 1):05d}.tar":
            folder.delete(later)


def write_imagefolder(output: Folder, name: str, rows: Rows) -> None:
    """A Hugging Face `imagefolder`: the captioned images and metadata.jsonl, for `load_dataset("imagefolder", …)`.

    Its columns are those of the rows, and `text`, which most programs for training expect; images keep their names
    behind their numbers.
    """
    folder = output / name
    written = {"metadata.jsonl"}
    with folder.create("metadata.jsonl") as table:
        for row, data in rows.with_images():
            file = f"{row['image_id']:09d}{_ending(row['path'], data)}"
            folder.write(file, data, durable=False)
            written.add(file)
            values: dict[str, Any] = {"file_name": file, "text": row["caption"], **row}
            table.write(f"{json.dumps(values, ensure_ascii=False, default=json_default)}\n".encode())
    for other in folder.names():
        if other not in written:
            folder.delete(other)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _ending(path: str, data: bytes) -> str:
    """The ending for an image: that of its name, or of its format if the name has none."""
    ending = os.path.splitext(path.partition("?")[0])[1].lower()
    known = find_format(data[:64])
    return ending if ending in IMAGE_ENDINGS or known is None else known.endings[0]
