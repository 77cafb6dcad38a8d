"""Checks before a batch job starts: the output is not in use and was written with the same settings, and the inputs
contain images. Mistakes of the user are reported here, before Ray or a model is started.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from captionlib.config import to_dict
from captionlib.errors import UserError
from captionlib.masking import masked
from captionlib.storage.errors import AccessDenied, TransportFault
from captionlib.storage.folder import Folder
from jobs.batch.manifest import ROWS_PER_GROUP, Manifest, delete_manifest
from jobs.batch.settings import BatchSettings
from jobs.inputs.listing import ImageRef, LeftOut
from jobs.inputs.sources import Sources
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.export import delete_exports
from jobs.outputs.sidecar import Sidecar


@contextlib.contextmanager
def output_lock(output: Folder) -> Iterator[None]:
    """Allow one run per output folder, by a lock of the operating system that ends with the process."""
    try:
        output.check_writable()
    except (OSError, ValueError) as error:
        raise UserError(f"the output {output.url} cannot be written: {error}") from error
    if not output.is_local:
        yield
        return
    import fcntl

    with open(f"{output.url}/.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another run is writing to {output.url}: wait for it, or choose another output") from error
        yield


def check_inputs(sources: Sources) -> None:
    """Check that the inputs contain an image, before the output is changed.

    Raises:
        UserError: an input does not exist or cannot be listed, or no input contains an image.
    """
    inputs = masked(" ".join(sources.inputs))
    try:
        left_out = LeftOut()
        found = [sources.first(text, left_out) for text in sources.inputs]
    except (AccessDenied, TransportFault, OSError) as error:
        raise UserError(f"the input {inputs} cannot be listed: {error}") from error
    if not any(found):
        others = f" ({left_out})" if left_out.counts else ""
        raise UserError(f"there are no images in {inputs}{others}: {sources.looked_for}")


def open_output(
    output: Folder, outputs: Mapping[str, ChunkFiles], kind: str, identity: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any]:
    """Return the record of an output that may be continued, after deleting the remains of an interrupted run.

    Args:
        outputs: files by folder name; the last ones mark chunks as finished.
        kind: name of the job.
        identity: everything that determines the rows; an output never mixes two identities.

    Raises:
        UserError: the output belongs to another job, was made with other settings, or lacks files.
    """
    stored = run_record.read_record(output)
    if stored.get("job", kind) != kind:
        raise UserError(f"{output.url} is the output of another job, {stored['job']}: choose another folder")
    if overwrite:
        empty_output(output, outputs)
        return {}
    there = stored.get("identity")
    if there is not None:
        different = run_record.differences(there, identity)
        if different and not list(outputs.values())[-1].finished():
            empty_output(output, outputs)  # there is no row yet that others could not be added to
            return {}
        if different:
            raise UserError(
                f"{output.url} was made with other settings: {'; '.join(different)}. Choose another output, use the "
                "same settings, or give --overwrite to start from the beginning"
            )
    for files in outputs.values():
        files.tidy()
    finished = list(outputs.values())[-1].finished()
    if finished and there is None:
        raise UserError(
            f"{output.url} contains finished files but no {run_record.NAME} with their settings: restore it, or "
            "give --overwrite to start from the beginning"
        )
    known = Manifest.open(output / "manifest").num_images
    if finished and finished[-1].last >= known:
        raise UserError(
            f"{output.url} contains rows up to image {finished[-1].last}, but its manifest has only {known} images: "
            "restore the manifest's files, or give --overwrite to start from the beginning"
        )
    return stored


def empty_output(output: Folder, outputs: Mapping[str, ChunkFiles]) -> None:
    """Delete everything that a job has written into an output; other files remain."""
    for files in reversed(list(outputs.values())):
        files.delete()
    delete_manifest(output / "manifest")
    output.delete(run_record.NAME)
    output.delete("report.html")
    for files in outputs.values():
        delete_exports(output, files)


def list_inputs(
    sources: Sources,
    output: Folder,
    stored: Mapping[str, Any],
    sidecar: Sidecar | None = None,
    limit: int | None = None,
) -> Manifest:
    """Return the manifest of an output, extended by the new images of the inputs.

    Args:
        stored: record of the output.
        sidecar: will write files beside the images.
        limit: maximum number of images that are listed.

    Raises:
        UserError: an input cannot be listed, or contains images that no file can be written beside.
    """

    def note(seen: int) -> None:
        if seen >= 100_000 and seen % 100_000 < ROWS_PER_GROUP:
            print(f"listed {seen:,} images", file=sys.stderr, flush=True)

    manifest = Manifest.open(output / "manifest")
    runs = stored.get("runs") or [{}]
    asked_before = runs[-1].get("settings", {}).get("source", {})
    is_asked_again = not run_record.differences(asked_before, to_dict(sources.settings))
    try:
        columns = manifest.columns() or sources.columns()
        # A damaged one may have been mended. Its error row may be in the output of another run (`--shard`).
        damaged = set(stored.get("damaged_inputs", ()))
        whole = (name for name in manifest.whole_shards() if masked(name) not in damaged) if is_asked_again else ()
        found = sources.list(set(whole))
        if sidecar is not None:
            found = sidecar.check(found)
        counted = _Counted(itertools.islice(found, limit))
        made = manifest.append(counted, note, columns)
    except (AccessDenied, TransportFault) as error:
        inputs = masked(" ".join(sources.inputs))
        raise UserError(f"the input {inputs} cannot be listed: {masked(str(error))}") from error
    if sidecar is not None and sidecar.left_out and not manifest.files:
        print(f"{sidecar.left_out['images']:,} images have a text file already, and are left out", file=sys.stderr)
    repeated = counted.count - made.num_images
    if repeated > 0 and not manifest.files:
        print(f"{repeated:,} images are listed more than once, and captioned once", file=sys.stderr)
    return made


class _Counted:
    """Counts what is iterated over."""

    def __init__(self, items: Iterable[ImageRef]) -> None:
        self.items, self.count = items, 0

    def __iter__(self) -> Iterator[ImageRef]:
        for self.count, item in enumerate(self.items, 1):  # noqa: B020
            yield item


def for_record(settings: BatchSettings) -> dict[str, Any]:
    """Return the settings for run.json, with secrets masked."""
    values = to_dict(settings)
    values["input"] = masked(settings.input)
    values["also"] = [masked(text) for text in settings.also]
    values["output"] = masked(settings.output)
    if settings.source.root is not None:
        values["source"]["root"] = masked(settings.source.root)
    if "captioner" in values:
        values["captioner"]["endpoint"] = [masked(url) for url in values["captioner"]["endpoint"]]
    return values
