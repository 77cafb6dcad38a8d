"""What an input names: a folder, a bucket or a pattern as a person writes it → a stream of files.

Listings are streamed folder by folder, or page by page, so that a bucket of millions needs no memory. What is in the
files, where they are not images, is for `shards` and `tables` to say.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from jobs.storage.errors import with_retries
from jobs.storage.read import filesystem, is_local

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class ImageRef(NamedTuple):
    """An image that an input holds, with all that is needed to read it alone."""

    path: str
    """Its name, by which it is known again: absolute, or a URL. In a shard: `<shard>/<member or row>`."""
    size: int | None = None
    """Bytes; None where the listing does not say."""
    shard: str | None = None
    """The tar or Parquet file that it is in; None for a file of its own."""
    offset: int | None = None
    """Of its first byte in the tar."""
    row: int | None = None
    """In the Parquet file, from 0."""
    columns: tuple[Any, ...] = ()
    """What is carried along with it into the output."""

    @property
    def is_damaged_shard(self) -> bool:
        """Not an image, but the place from which on a shard cannot be read."""
        return self.shard is not None and self.offset is None and self.row is None


def list_files(text: str, extensions: tuple[str, ...] = IMAGE_EXTENSIONS) -> Iterator[ImageRef]:
    """The files of an input; within a folder in the order of their names, as far as the storage has one.

    An input is a folder (with all folders in it), one file, a pattern such as `photos/*.jpg`, or an fsspec URL of
    any of these. Hidden files and folders are passed over, and so are files without one of the extensions, unless
    the input names the file itself.

    Args:
        extensions: in lower case; `("",)` for all files.

    Raises:
        ValueError: the input does not exist or may not be listed.
    """
    try:
        yield from _list_input(text, extensions)
    except FileNotFoundError as error:
        raise ValueError(f"the input {text} does not exist") from error
    except PermissionError as error:
        raise ValueError(f"the input {text} may not be listed: {error}") from error


def _list_input(text: str, extensions: tuple[str, ...]) -> Iterator[ImageRef]:
    text = text.removeprefix("file://")
    if is_local(text):
        root = os.path.abspath(os.path.expanduser(text))
        if os.path.isdir(root):
            yield from _list_folder(root, extensions, frozenset())
        elif os.path.isfile(root):
            yield ImageRef(_as_utf8(root), os.path.getsize(root))
        elif _is_pattern(text):
            yield from _list_pattern(root, extensions)
        else:
            raise FileNotFoundError(text)
        return
    if text.startswith("http"):
        # `?` begins a query there, and a page that lists a folder has no extension.
        if text.partition("?")[0].lower().endswith(extensions) and not text.endswith("/") and extensions != ("",):
            yield ImageRef(text)
        else:
            yield from _list_remote(text, extensions)
    elif _is_pattern(text):
        yield from _list_pattern(text, extensions)
    elif text.startswith(("s3://", "s3a://")):
        yield from _list_s3(text, extensions)
    else:
        yield from _list_remote(text, extensions)


def _list_folder(folder: str, extensions: tuple[str, ...], above: frozenset[tuple[int, int]]) -> Iterator[ImageRef]:
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        return  # a link to a folder that holds it
    above |= {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _list_folder(entry.path, extensions, above)
        elif entry.name.lower().endswith(extensions) and (entry.is_file() or entry.is_symlink()):
            # A link that leads nowhere is listed too: its error will say so.
            yield ImageRef(_as_utf8(entry.path), entry.stat().st_size if entry.is_file() else None)


def _list_s3(url: str, extensions: tuple[str, ...]) -> Iterator[ImageRef]:
    """A bucket or prefix, page by page: `find` would hold a dict of 1 KB per object."""
    fs = filesystem(url)
    bucket, _, key = url.partition("://")[2].partition("/")
    protocol = url.partition("://")[0]
    key = key.rstrip("/")
    if key and fs.isfile(f"{bucket}/{key}"):
        yield ImageRef(url, fs.size(f"{bucket}/{key}"))
        return
    prefix, found = f"{key}/" if key else "", False
    where = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page: dict[str, Any] = with_retries(functools.partial(fs.call_s3, "list_objects_v2", **where))
        for item in page.get("Contents", ()):
            found = True
            name = item["Key"]
            if _is_image(name[len(prefix) :], extensions):
                yield ImageRef(f"{protocol}://{bucket}/{name}", item["Size"])
        if not page.get("IsTruncated"):
            break
        where["ContinuationToken"] = page["NextContinuationToken"]
    if not found:
        raise FileNotFoundError(url)


def _list_remote(url: str, extensions: tuple[str, ...]) -> Iterator[ImageRef]:
    """A folder of any fsspec filesystem, one folder's listing in memory at a time."""
    fs = filesystem(url)
    if not url.endswith("/") and not url.startswith("http") and with_retries(lambda: fs.isfile(url)):
        yield ImageRef(url, fs.size(url))
        return
    for item in sorted(with_retries(lambda: fs.ls(url, detail=True)), key=lambda item: item["name"]):
        name = item["name"].rstrip("/").rpartition("/")[2]
        if name.startswith("."):
            continue
        if item["type"] == "directory":
            yield from _list_remote(fs.unstrip_protocol(item["name"]) + "/", extensions)
        elif name.lower().endswith(extensions):
            yield ImageRef(fs.unstrip_protocol(item["name"]), item.get("size"))


def _list_pattern(pattern: str, extensions: tuple[str, ...]) -> Iterator[ImageRef]:
    fs = filesystem(pattern)
    found = with_retries(lambda: fs.glob(pattern, detail=True))
    if not found:
        raise FileNotFoundError(pattern)
    for name in sorted(found):
        path = name if is_local(pattern) else fs.unstrip_protocol(name)
        if found[name]["type"] == "directory":
            yield from _list_input(path, extensions)
        elif _is_image(name.rpartition("/")[2], extensions):
            yield ImageRef(_as_utf8(path), found[name].get("size"))


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _is_image(key: str, extensions: tuple[str, ...]) -> bool:
    """Whether a path below an input counts: the extension is listed, and nothing of it is hidden."""
    return key.lower().endswith(extensions) and not key.startswith(".") and "/." not in key


def _as_utf8(path: str) -> str:
    """Linux allows names that are not UTF-8; Parquet does not. Reading such a path will say what is wrong."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
