"""Finds canaries: URLs of images that were fetched, whose servers show later whether the network is working."""

from __future__ import annotations

import pyarrow.compute as pc

from jobs.batch.manifest import Manifest
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange

_WEB_URL = "^https?://"
LAST_FILES = 8
"""Number of files that are searched for an image which an earlier run fetched from a web server."""


def fetched_urls(files: ChunkFiles, manifest: Manifest, ids: IdRange) -> list[str]:
    """Return the URL of the last image of a finished chunk that was fetched from a web server; empty if none was."""
    rows = files.read(ids, ["image_id", "path", "error"])
    came = pc.and_(pc.is_null(rows.column("error")), pc.match_substring_regex(rows.column("path"), _WEB_URL))
    found = rows.filter(came).column("image_id").to_pylist()
    # The path of a row has no signature or password any more, that of the manifest has.
    return [manifest.read(IdRange(found[-1], found[-1])).column("path")[0].as_py()] if found else []


def fetched_before(files: ChunkFiles, manifest: Manifest) -> list[str]:
    """Return the URL of an image that an earlier run fetched, from the newest file that has one."""
    for ids in reversed(files.finished()[-LAST_FILES:]):
        urls = fetched_urls(files, manifest, ids)
        if urls:
            return urls
    return []
