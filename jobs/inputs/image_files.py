"""Folders and buckets of image files, with or without a table of their columns beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping

import pyarrow as pa

from captionlib.errors import ImageError
from captionlib.images.decode import begins_as_image
from captionlib.images.formats import IMAGE_ENDINGS
from captionlib.storage.read import read_range
from jobs.inputs.listing import ImageRef, Request, is_folder, list_files
from jobs.inputs.manifests import columns_of_table, list_table
from jobs.inputs.threads import in_threads

FILES_AT_ONCE = 32
"""Maximum number of remote files that are examined concurrently."""
FIRST_BYTES = 64
"""Number of bytes that `begins_as_image` needs."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of a Hugging Face `imagefolder`, beside the images that they describe in a column `file_name`."""


class ImageFiles:
    """Image files, by their names or by their content."""

    looked_for = (
        "files that end as images do are looked for, in all folders that are not hidden; tars and Parquet files with "
        "--input-format, other files with --by-content"
    )

    def matches(self, text: str, request: Request) -> bool:
        """Every input is one, if it is nothing else."""
        return True

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the files that are images."""
        if not request.by_content:
            found = list_files(text, IMAGE_ENDINGS, request.left_out)
        else:
            found = _list_by_content(text, request)
        nothing = (None,) * len(request.columns)
        return (item._replace(columns=nothing) for item in found) if nothing else found

    def columns(self, text: str, request: Request) -> Mapping[str, pa.DataType]:
        """Files have no columns."""
        return {}


class ImageFolder:
    """A Hugging Face `imagefolder`: image files, and tables of their columns beside them."""

    looked_for = "image files, and metadata.csv or metadata.jsonl beside them, are looked for"

    def matches(self, text: str, request: Request) -> bool:
        """Whether columns are wanted of a local folder which, or a folder in which, has such a table."""
        if not request.columns or not is_folder(text):
            return False
        root = os.path.expanduser(text.removeprefix("file://"))
        folders = [root, *(entry.path for entry in os.scandir(root) if entry.is_dir())]
        return any(os.path.isfile(os.path.join(folder, name)) for folder in folders for name in METADATA)

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the images of the tables in their order, and then the files that are in none."""
        listed: set[bytes] = set()
        for table in _tables(text):
            for image in list_table(table, request.columns, "file_name", None):
                listed.add(_digest(image.path))
                yield image
        for image in ImageFiles().list(text, request):
            if _digest(image.path) not in listed:
                yield image

    def columns(self, text: str, request: Request) -> Mapping[str, pa.DataType]:
        """Return the columns of the first table."""
        table = next(_tables(text), None)
        return columns_of_table(table) if table is not None else {}


def _tables(text: str) -> Iterator[str]:
    return (file.path for file in list_files(text, METADATA) if file.path.rpartition("/")[2] in METADATA)


def _digest(path: str) -> bytes:
    return hashlib.blake2b(path.encode(), digest_size=8).digest()


def _list_by_content(text: str, request: Request) -> Iterator[ImageRef]:
    """List the files of an input that are images by their name or, without a known extension, by their first bytes."""
    for taken, item in in_threads(_is_image, list_files(text, ("",), request.left_out), FILES_AT_ONCE):
        if taken:
            yield item
        else:
            request.left_out.add(item.path)


def _is_image(item: ImageRef) -> bool:
    if item.path.lower().endswith(IMAGE_ENDINGS):
        return True
    if item.size == 0:
        return False
    try:
        return begins_as_image(read_range(item.path, 0, FIRST_BYTES))
    except ImageError:
        return False  # the file is missing or not readable, and nothing indicates that it is an image
