"""Lists the images in the tars of a WebDataset, such as img2dataset writes.

A tar is indexed once, when the input is listed. Each image is then read independently by its byte range, on any
machine.
"""

from __future__ import annotations

import functools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from captionlib.images.formats import IMAGE_ENDINGS
from captionlib.storage.inputs import open_input
from jobs.inputs.listing import ImageRef, LeftOut, Request, list_files, path_of
from jobs.inputs.threads import list_shards

TAR_EXTENSIONS = (".tar",)
KEY = "key"
"""Column that every tar has: the name that the members of one sample share."""
LARGEST_TEXT = 2**20
"""Largest member, in bytes, that can be copied into a column."""


class WebDataset:
    """Tars with the members of each sample one after the other."""

    looked_for = "tars are looked for, and in them files that end as images do"

    def matches(self, text: str, request: Request) -> bool:
        """Whether the name ends in .tar."""
        return path_of(text).endswith(TAR_EXTENSIONS)

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the images of all tars."""
        files = list_files(text, TAR_EXTENSIONS, request.left_out)
        index = functools.partial(list_tar, columns=request.columns, left_out=request.left_out)
        return list_shards((file.path for file in files), index, request)

    def columns(self, text: str, request: Request) -> None:
        """Members of a sample are text."""
        return


def list_tar(path: str, columns: Sequence[str] = (), left_out: LeftOut | None = None) -> Iterator[ImageRef]:
    """List the images of a tar in file order. For a damaged tar, a last entry without an offset stands for the rest.

    Args:
        columns: values to copy for each sample: `key`, the text of a member by its extension (such as `txt`), or a
            field of its `json` member; None where a sample has no such value.
    """
    names: Counter[str] = Counter()
    with open_input(path) as stream:
        try:
            # "r:" refuses compressed tar files, which cannot be read from the middle.
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for key, members in _samples(tar):
                    images = [member for member in members if member.name.lower().endswith(IMAGE_ENDINGS)]
                    if not images and left_out is not None:
                        for member in members:
                            left_out.add(member.name)
                    for member in images:
                        values = _texts(tar, key, member, members, columns) if columns else ()
                        name = printable_name(member.name)
                        names[name] += 1
                        unique = name if names[name] == 1 else f"{name}#{names[name]}"
                        yield ImageRef(f"{path}/{unique}", member.size, path, member.offset_data, None, values)
                stream.seek(tar.offset)
                if stream.read(512) != bytes(512):
                    raise tarfile.ReadError("it does not end as a tar does")
        except tarfile.TarError:
            yield ImageRef(path, None, path, None, None, (None,) * len(columns))


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Group consecutive members whose names are equal up to the first dot of the file name."""
    key = ""
    members: list[tarfile.TarInfo] = []
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all members in memory
        folder, _, name = member.name.rpartition("/")
        if not member.isreg() or name.startswith("."):
            continue
        here = f"{folder}/{name.partition('.')[0]}".removeprefix("/")
        if here != key and members:
            yield key, members
            members = []
        key = here
        members.append(member)
    if members:
        yield key, members


def _texts(
    tar: tarfile.TarFile,
    key: str,
    image: tarfile.TarInfo,
    members: Sequence[tarfile.TarInfo],
    columns: Sequence[str],
) -> tuple[str | None, ...]:
    by_extension = {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in members}
    # Names with further dots, as `22.05.jpg` and `22.05.txt`, make one sample of several images: each has its own text.
    own = f"{image.name.rpartition('.')[0]}."
    by_extension |= {m.name[len(own) :].lower(): m for m in members if m.name.startswith(own)}

    def text(extension: str) -> str | None:
        member = by_extension.get(extension)
        file = tar.extractfile(member) if member is not None and member.size <= LARGEST_TEXT else None
        return file.read().decode("utf-8", "replace") if file is not None else None

    fields: dict[str, Any] | None = None
    values: list[str | None] = []
    for name in columns:
        if name == KEY:
            values.append(key)
        elif name in by_extension:
            values.append(text(name))
        else:
            if fields is None:
                fields = _json_object(text("json"))
            value = fields.get(name)
            values.append(value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return tuple(values)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def printable_name(name: str) -> str:
    """Return a member's name as valid UTF-8, which Parquet requires."""
    return name.removeprefix("./").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
