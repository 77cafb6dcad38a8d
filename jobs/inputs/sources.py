"""Lists the images of all inputs of a job as one stream, whatever format each input has."""

from __future__ import annotations

import collections
import fnmatch
import functools
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from captionlib.errors import UserError
from captionlib.images.decode import begins_as_image
from jobs.inputs.listing import IMAGE_EXTENSIONS, ImageRef, list_files
from jobs.inputs.manifests import TABLE_EXTENSIONS, list_table, table_schema
from jobs.inputs.parquet import image_column, list_parquet
from jobs.inputs.settings import SourceSettings
from jobs.inputs.webdataset import TAR_EXTENSIONS, list_tar
from jobs.storage.errors import AccessDenied, InputFault, TransportFault, classify_storage_error, with_retries
from jobs.storage.paths import is_local
from jobs.storage.read import read_range

T = TypeVar("T")

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHARDS_AT_ONCE = 8
"""Number of remote shards that are indexed concurrently."""
FILES_AT_ONCE = 32
"""Number of remote files whose first bytes are read concurrently."""
FIRST_BYTES = 64
"""Number of bytes that `begins_as_image` needs."""


@dataclass(frozen=True)
class Sources:
    """The inputs that a user named, and the options that select images from them."""

    inputs: tuple[str, ...]
    settings: SourceSettings = field(default_factory=SourceSettings)

    def list(self, known_shards: Collection[str] = ()) -> Iterator[ImageRef]:
        """Stream the images of all inputs, one input after the other.

        Args:
            known_shards: shards that are listed completely already and are skipped.

        Raises:
            UserError: an input does not exist, cannot be listed, or has another format than stated.
            AccessDenied, TransportFault: the storage rejects the credentials or does not answer.
        """
        for text in self.inputs:
            yield from self._list_input(text, known_shards, SHARDS_AT_ONCE)

    def first(self, text: str) -> ImageRef | None:
        """Return the first image of one input; None if there is none."""
        return next(self._list_input(text, (), 0), None)

    @property
    def looked_for(self) -> str:
        """Describe which files were searched for, for the message that no image was found."""
        kinds = {
            "webdataset": "tars are looked for, and in them files that end as images do",
            "parquet": "Parquet files with a column of images are looked for; --image-column names it",
            "manifest": "paths or URLs in tables are looked for",
        }
        files = (
            "files that end as images do are looked for, in all folders that are not hidden; tars and Parquet files "
            "with --input-format, other files with --by-content"
        )
        filters = "; --include and --exclude pass over others" if any(self._patterns) else ""
        return kinds.get(self.settings.input_format, files) + filters

    def columns(self) -> pa.Schema:
        """Return names and types of the copied columns.

        Raises:
            UserError: no input has one of the columns, or its type differs between inputs.
        """
        found: dict[str, pa.DataType] = {}
        for text in self.inputs if self.settings.columns else ():
            known = self._columns_of(text)
            for ours, theirs in self.settings.carried:
                kind = known.get(theirs) if known is not None else pa.string()
                if kind is not None and found.setdefault(ours, kind) != kind:
                    raise UserError(f"the column {theirs} of {text} holds {kind}, that of another input {found[ours]}")
        for ours, theirs in self.settings.carried:
            if ours not in found:
                raise UserError(f"no input has a column {theirs}, which --columns asks for")
        return pa.schema([(ours, found[ours]) for ours, _ in self.settings.carried])

    def local_roots(self) -> tuple[str, ...]:
        """Return the local folders that contain the images; every machine of a cluster must see them."""
        roots = []
        for text in self.inputs:
            if self._format(text) == "manifest":
                first = self.first(text)
                text = (first.shard or first.path) if first is not None else text
            text = text.removeprefix("file://")
            if is_local(text):
                root = os.path.abspath(os.path.expanduser(text))
                while not os.path.isdir(root):
                    root = os.path.dirname(root)
                roots.append(root)
        return tuple(roots)

    # --- one input ----------------------------------------------------------------------------------------------

    def _list_input(self, text: str, known_shards: Collection[str], shards_at_once: int) -> Iterator[ImageRef]:
        if text.lower().endswith(COMPRESSED_TARS):
            raise UserError(f"{text} is compressed, so that nothing can be read from its middle: unpack it to a .tar")
        found = self._of_format(text, known_shards, 0 if is_local(text) else shards_at_once)
        return (item for item in _translating(found) if item.is_damaged_shard or self._is_wanted(item.path))

    def _of_format(self, text: str, known_shards: Collection[str], shards_at_once: int) -> Iterator[ImageRef]:
        theirs = [name for _, name in self.settings.carried]
        match self._format(text):
            case "webdataset":
                new = (file.path for file in list_files(text, TAR_EXTENSIONS) if file.path not in known_shards)
                return _index(new, functools.partial(list_tar, columns=theirs), shards_at_once)
            case "parquet":
                new = (file.path for file in list_files(text, (".parquet",)) if file.path not in known_shards)
                # Those without images are what img2dataset writes beside its tars and folders.
                with_images = filter(self._has_images, new)
                return _index(with_images, functools.partial(list_parquet, columns=theirs), shards_at_once)
            case "manifest":
                return itertools.chain.from_iterable(
                    list_table(file.path, theirs, self.settings.path_column, self.settings.root)
                    for file in list_files(text, TABLE_EXTENSIONS)
                )
            case _:
                found = self._of_content(text) if self.settings.by_content else list_files(text)
                return (item._replace(columns=(None,) * len(theirs)) for item in found) if theirs else found

    def _format(self, text: str) -> str:
        """Return the format of an input, derived from its name if the user did not state it."""
        if self.settings.input_format != "auto":
            return self.settings.input_format
        if os.path.isdir(os.path.expanduser(text.removeprefix("file://"))):
            return "images"
        name = text.partition("?")[0].lower() if text.startswith("http") else text.lower()
        if name.endswith(TAR_EXTENSIONS):
            return "webdataset"
        if name.endswith(".parquet"):
            first = next(list_files(text, (".parquet",)), None)
            return "parquet" if first is not None and self._has_images(first.path) else "manifest"
        return "manifest" if name.endswith(TABLE_EXTENSIONS) else "images"

    def _has_images(self, path: str) -> bool:
        schema = with_retries(lambda: table_schema(path))
        assert schema is not None, "a Parquet file has a schema"
        return image_column(schema, self.settings.image_column) is not None

    def _columns_of(self, text: str) -> dict[str, pa.DataType] | None:
        """Return the columns of an input according to its first file; None if all are text, as for members of a tar."""
        kind = self._format(text)
        if kind == "webdataset":
            return None
        file = next(list_files(text, TABLE_EXTENSIONS), None) if kind in ("parquet", "manifest") else None
        schema = with_retries(lambda: table_schema(file.path)) if file is not None else None
        types = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        return {name: t.value_type if pa.types.is_dictionary(t) else t for name, t in types.items()}

    # --- filters ------------------------------------------------------------------------------------------------

    def _is_wanted(self, path: str) -> bool:
        included, excluded = self._patterns
        return (included is None or included.match(path) is not None) and not (excluded and excluded.match(path))

    @functools.cached_property
    def _patterns(self) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
        def either(patterns: Iterable[str]) -> re.Pattern[str] | None:
            # A pattern may begin at any slash: so it names files, or folders and what is in them.
            texts = [fnmatch.translate(text) for pattern in patterns for text in (pattern, f"*/{pattern}")]
            return re.compile("|".join(texts)) if texts else None

        return either(self.settings.include), either(self.settings.exclude)

    def _of_content(self, text: str) -> Iterator[ImageRef]:
        """List the files of an input that are images by their name or, without a known extension, by their first
        bytes.
        """
        for taken, item in _in_threads(_begins_as_image, list_files(text, ("",)), FILES_AT_ONCE):
            if taken:
                yield item


def _begins_as_image(item: ImageRef) -> bool:
    if item.path.lower().endswith(IMAGE_EXTENSIONS):
        return True
    if item.size == 0:
        return False
    try:
        return begins_as_image(read_range(item.path, 0, FIRST_BYTES))
    except InputFault:
        return False  # gone, or not for us: nothing says that it was an image


def _index(shards: Iterable[str], index: Callable[[str], Iterator[ImageRef]], at_once: int) -> Iterator[ImageRef]:
    """List the images of each shard in order. `at_once` shards are indexed concurrently; 0 indexes them lazily."""
    if not at_once:
        return itertools.chain.from_iterable(map(index, shards))
    whole = _in_threads(lambda path: with_retries(lambda: list(index(path))), shards, at_once)
    return itertools.chain.from_iterable(found for found, _ in whole)


def _in_threads(action: Callable[[T], object], items: Iterable[T], at_once: int) -> Iterator[tuple]:
    """Yield (action(item), item) in order, with a bounded number of items in progress."""
    with ThreadPoolExecutor(at_once) as pool:
        ahead: collections.deque[tuple[Future, T]] = collections.deque()
        try:
            for item in items:
                ahead.append((pool.submit(action, item), item))
                if len(ahead) >= 2 * at_once:
                    future, first = ahead.popleft()
                    yield future.result(), first
            while ahead:
                future, first = ahead.popleft()
                yield future.result(), first
        finally:
            for future, _ in ahead:
                future.cancel()


def _translating(found: Iterator[ImageRef]) -> Iterator[ImageRef]:
    """Convert exceptions of a storage library during a listing to those of `jobs.storage.errors`."""
    try:
        yield from found
    except (ValueError, AccessDenied, TransportFault):
        raise
    except Exception as error:
        raise classify_storage_error(error) from error
