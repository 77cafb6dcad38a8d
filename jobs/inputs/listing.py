"""Lists the files of an input: a folder, a bucket, a single file or a pattern → a stream of files.

Listings are streamed folder by folder or page by page, so that memory does not grow with the bucket. `webdataset`,
`parquet` and `manifests` list the images inside files.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from captionlib.errors import UserError
from captionlib.images.formats import IMAGE_ENDINGS
from captionlib.storage.errors import with_retries
from captionlib.storage.paths import is_local
from captionlib.storage.read import input_filesystem

MOST_ENDINGS = 100
"""Maximum number of different endings that are counted; the rest is counted together."""


class LeftOut:
    """Counts the files that are not read because of their names, by ending. Threads may share an instance."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Count one file."""
        base = name.rpartition("/")[2]
        ending = "hidden" if base.startswith(".") else os.path.splitext(base)[1].lower() or "without an ending"
        with self._lock:
            known = ending in self.counts or len(self.counts) < MOST_ENDINGS
            self.counts[ending if known and len(ending) < 20 else "others"] += 1

    def __str__(self) -> str:
        """Such as `not images by their names: 12 .txt, 3 .zip`; empty if there are none."""
        return describe_left_out(self.counts)


def describe_left_out(counts: Mapping[str, int]) -> str:
    """Format counts by ending as one line."""
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in Counter(counts).most_common())
    return f"not images by their names: {kinds}" if kinds else ""


class ImageRef(NamedTuple):
    """One image of an input, with everything needed to read it independently of the others."""

    path: str
    """Unique name: an absolute path or URL; inside a shard, `<shard>/<member or row>`."""
    size: int | None = None
    """Size in bytes; None if the listing does not state it."""
    shard: str | None = None
    """The tar or Parquet file that contains the image; None for a file of its own."""
    offset: int | None = None
    """Offset of the first byte in the tar."""
    row: int | None = None
    """Row in the Parquet file, counted from 0."""
    columns: tuple[Any, ...] = ()
    """Values that are copied into the output along with the image."""

    @property
    def is_damaged_shard(self) -> bool:
        """Whether this entry stands for the unreadable rest of a damaged shard rather than for an image."""
        return self.shard is not None and self.offset is None and self.row is None


@dataclass(frozen=True)
class Request:
    """What to list of an input, and how; see `jobs.inputs.settings` for the fields of the same name."""

    columns: tuple[str, ...] = ()
    """Names in the input of the values that are copied into the output."""
    path_column: str | None = None
    image_column: str | None = None
    root: str | None = None
    by_content: bool = False
    known_shards: Collection[str] = ()
    """Shards that are not listed again."""
    shards_at_once: int = 0
    """Number of shards that are listed concurrently; 0 lists them lazily, one by one."""
    left_out: LeftOut = field(default_factory=LeftOut)


class InputFormat(Protocol):
    """A kind of input: what its images are, and the values that can be copied along with them."""

    looked_for: str
    """What is searched for, for the message that no image was found."""

    def matches(self, text: str, request: Request) -> bool:
        """Whether an input is of this kind according to its name, if the user states no format."""

    def list(self, text: str, request: Request) -> Iterator[ImageRef]:
        """List the images of an input.

        Raises:
            UserError: the input does not exist, or is not what it should be.
        """

    def columns(self, text: str, request: Request) -> Mapping[str, pa.DataType] | None:
        """Return the columns that the input has; None if every name is possible, and all values are text."""


def list_files(
    text: str, extensions: tuple[str, ...] = IMAGE_ENDINGS, left_out: LeftOut | None = None
) -> Iterator[ImageRef]:
    """List the files of an input, within each folder sorted by name where the storage sorts them.

    An input is a folder (searched recursively), a single file, a pattern such as `photos/*.jpg`, or an fsspec URL of
    any of these. Hidden files and folders are skipped, and so are files without one of the extensions, unless the input
    names the file itself.

    Args:
        extensions: lower-case suffixes; `("",)` matches all files.
        left_out: counts files without one of the extensions.

    Raises:
        UserError: the input does not exist, or permission to list it is denied.
    """
    try:
        yield from _list_input(text, extensions, left_out or LeftOut())
    except FileNotFoundError as error:
        raise UserError(f"the input {text} does not exist") from error
    except PermissionError as error:
        raise UserError(f"the input {text} may not be listed: {error}") from error


def _list_input(text: str, extensions: tuple[str, ...], left_out: LeftOut) -> Iterator[ImageRef]:
    text = text.removeprefix("file://")
    if is_local(text):
        root = os.path.abspath(os.path.expanduser(text))
        if os.path.isdir(root):
            yield from _list_folder(root, extensions, left_out, frozenset())
        elif os.path.isfile(root):
            yield ImageRef(_as_utf8(root), os.path.getsize(root))
        elif _is_pattern(text):
            yield from _list_pattern(root, extensions, left_out)
        else:
            raise FileNotFoundError(text)
        return
    if text.startswith("http"):
        # `?` begins a query in a URL, and a page that lists a folder has no extension.
        if text.partition("?")[0].lower().endswith(extensions) and not text.endswith("/") and extensions != ("",):
            yield ImageRef(text)
        else:
            yield from _list_remote(text, extensions, left_out)
    elif _is_pattern(text):
        yield from _list_pattern(text, extensions, left_out)
    elif text.startswith(("s3://", "s3a://")):
        yield from _list_s3(text, extensions, left_out)
    else:
        yield from _list_remote(text, extensions, left_out)


def _list_folder(
    folder: str, extensions: tuple[str, ...], left_out: LeftOut, above: frozenset[tuple[int, int]]
) -> Iterator[ImageRef]:
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        return  # a link to a parent folder
    above |= {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith("."):
            left_out.add(entry.name)
        elif entry.is_dir():
            yield from _list_folder(entry.path, extensions, left_out, above)
        elif entry.name.lower().endswith(extensions) and (entry.is_file() or entry.is_symlink()):
            # A broken link is listed too, and gets an error in its row.
            yield ImageRef(_as_utf8(entry.path), entry.stat().st_size if entry.is_file() else None)
        else:
            left_out.add(entry.name)


def _list_s3(url: str, extensions: tuple[str, ...], left_out: LeftOut) -> Iterator[ImageRef]:
    """List a bucket or prefix page by page; `find` of s3fs would keep 1 KB per object in memory."""
    fs = input_filesystem(url)
    bucket, _, key = url.partition("://")[2].partition("/")
    protocol = url.partition("://")[0]
    key = key.rstrip("/")
    if key and fs.isfile(f"{bucket}/{key}"):
        yield ImageRef(url, fs.size(f"{bucket}/{key}"))
        return
    prefix, found = f"{key}/" if key else "", False
    where = {"Bucket": bucket, "Prefix": prefix, **fs.req_kw}
    while True:
        page: dict[str, Any] = with_retries(functools.partial(fs.call_s3, "list_objects_v2", **where))
        for item in page.get("Contents", ()):
            found = True
            name = item["Key"]
            if _is_image(name[len(prefix) :], extensions):
                yield ImageRef(f"{protocol}://{bucket}/{name}", item["Size"])
            elif not name.endswith("/"):
                left_out.add(name)
        if not page.get("IsTruncated"):
            break
        where["ContinuationToken"] = page["NextContinuationToken"]
    if not found:
        raise FileNotFoundError(url)


def _list_remote(url: str, extensions: tuple[str, ...], left_out: LeftOut) -> Iterator[ImageRef]:
    """List a folder of any fsspec filesystem recursively, with one folder's listing in memory at a time."""
    fs = input_filesystem(url)
    if not url.endswith("/") and not url.startswith("http") and with_retries(lambda: fs.isfile(url)):
        yield ImageRef(url, fs.size(url))
        return
    for item in sorted(with_retries(lambda: fs.ls(url, detail=True)), key=lambda item: item["name"]):
        name = item["name"].rstrip("/").rpartition("/")[2]
        if name.startswith("."):
            left_out.add(name)
        elif item["type"] == "directory":
            yield from _list_remote(fs.unstrip_protocol(item["name"]) + "/", extensions, left_out)
        elif name.lower().endswith(extensions):
            yield ImageRef(fs.unstrip_protocol(item["name"]), item.get("size"))
        else:
            left_out.add(name)


def _list_pattern(pattern: str, extensions: tuple[str, ...], left_out: LeftOut) -> Iterator[ImageRef]:
    fs = input_filesystem(pattern)
    found = with_retries(lambda: fs.glob(pattern, detail=True))
    if not found:
        raise FileNotFoundError(pattern)
    for name in sorted(found):
        path = name if is_local(pattern) else fs.unstrip_protocol(name)
        if found[name]["type"] == "directory":
            yield from _list_input(path, extensions, left_out)
        elif _is_image(name.rpartition("/")[2], extensions):
            yield ImageRef(_as_utf8(path), found[name].get("size"))
        else:
            left_out.add(name)


def path_of(text: str) -> str:
    """The part of an input's name that may have an ending, in lower case."""
    return (text.partition("?")[0] if text.startswith("http") else text).lower()


def is_folder(text: str) -> bool:
    """Whether an input is a local folder."""
    return is_local(text) and os.path.isdir(os.path.expanduser(text.removeprefix("file://")))


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _is_image(key: str, extensions: tuple[str, ...]) -> bool:
    """Whether a path below an input is taken: it has one of the extensions, and no part of it is hidden."""
    return key.lower().endswith(extensions) and not key.startswith(".") and "/." not in key


def _as_utf8(path: str) -> str:
    """Replace bytes that are not UTF-8: Linux allows them in names, Parquet does not. Reading such a path reports
    it.
    """
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
