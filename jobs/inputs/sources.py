"""Lists the images of all inputs of a job as one stream, whatever format each input has."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from captionlib.errors import UserError
from captionlib.storage.errors import AccessDenied, TransportFault, classify_storage_error
from captionlib.storage.paths import is_local
from jobs.inputs.formats import INPUT_FORMATS
from jobs.inputs.listing import ImageRef, LeftOut, Request
from jobs.inputs.run_shard import RunShard
from jobs.inputs.settings import AUTO, SourceSettings

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHARDS_AT_ONCE = 8
"""Number of remote shards that are indexed concurrently."""


@dataclass(frozen=True)
class Sources:
    """The inputs that a user named, and the options that select images from them."""

    inputs: tuple[str, ...]
    settings: SourceSettings = field(default_factory=SourceSettings)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)
    """Files that `list` has not read because of their names."""
    shard: RunShard | None = None
    """Share of the images that `list` returns; None for all."""
    damaged: set[str] = field(default_factory=set, compare=False)
    """Tars and Parquet files of which `list` could not read the end."""

    def list(self, known_shards: Collection[str] = ()) -> Iterator[ImageRef]:
        """Stream the images of all inputs that belong to the shard, one input after the other.

        Args:
            known_shards: shards that are listed completely already and are skipped.

        Raises:
            UserError: an input does not exist, cannot be listed, or has another format than stated.
            AccessDenied, TransportFault: the storage rejects the credentials or does not answer.
        """
        request = self._request(known_shards=known_shards, shards_at_once=SHARDS_AT_ONCE, left_out=self.left_out)
        for text in self.inputs:
            for item in self._list_input(text, request):
                if item.is_damaged_shard:
                    self.damaged.add(item.path)
                if self.shard is None or self.shard.contains(item.path):
                    yield item

    def first(self, text: str, left_out: LeftOut | None = None) -> ImageRef | None:
        """Return the first image of one input, whatever its shard; None if there is none."""
        return next(self._list_input(text, self._request(left_out=left_out or LeftOut())), None)

    @property
    def looked_for(self) -> str:
        """Describe which files were searched for, for the message that no image was found."""
        name = self.settings.input_format
        kind = INPUT_FORMATS["images" if name == AUTO else name].looked_for
        filters = "; --include and --exclude pass over others" if any(self._patterns) else ""
        return kind + filters

    def columns(self) -> pa.Schema:
        """Return names and types of the copied columns.

        Raises:
            UserError: no input has one of the columns, or its type differs between inputs.
        """
        found: dict[str, pa.DataType] = {}
        for text in self.inputs if self.settings.columns else ():
            known = INPUT_FORMATS[self._format(text)].columns(text, self._request())
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

    def _list_input(self, text: str, request: Request) -> Iterator[ImageRef]:
        if text.lower().endswith(COMPRESSED_TARS):
            raise UserError(f"{text} is compressed, so that nothing can be read from its middle: unpack it to a .tar")
        request = dataclasses.replace(request, shards_at_once=0 if is_local(text) else request.shards_at_once)
        found = _translating(INPUT_FORMATS[self._format(text)].list(text, request))
        if self.settings.only_missing is not None:
            found = self._without_known_captions(text, found, self.settings.only_missing, request)
        if not any(self._patterns):
            return found
        return (item for item in found if item.is_damaged_shard or self._is_wanted(item.path))

    def _without_known_captions(
        self, text: str, found: Iterator[ImageRef], name: str, request: Request
    ) -> Iterator[ImageRef]:
        """Leave out images with a value in the column `name`, which is listed behind the others."""
        known = INPUT_FORMATS[self._format(text)].columns(text, request)
        if known is not None and name not in known:
            raise UserError(f"{text} has no column {name}, which --only-missing asks for; it has {', '.join(known)}")
        for item in found:
            *columns, value = item.columns
            if item.is_damaged_shard or value is None or not str(value).strip():
                yield item._replace(columns=tuple(columns))

    def _request(self, **more: Any) -> Request:
        settings = self.settings
        theirs = tuple(name for _, name in settings.carried)
        theirs += () if settings.only_missing is None else (settings.only_missing,)
        return Request(theirs, settings.path_column, settings.image_column, settings.root, settings.by_content, **more)

    def _format(self, text: str) -> str:
        """Return the format of an input, derived from its name if the user did not state it."""
        if self.settings.input_format != AUTO:
            return self.settings.input_format
        request = self._request()
        return next(name for name, known in INPUT_FORMATS.items() if known.matches(text, request))

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


def _translating(found: Iterator[ImageRef]) -> Iterator[ImageRef]:
    """Convert exceptions of a storage library during a listing to those of `captionlib.storage.errors`."""
    try:
        yield from found
    except (ValueError, AccessDenied, TransportFault):
        raise
    except Exception as error:
        raise classify_storage_error(error) from error
