"""Before a job over images starts: is the output free and of the same making, and what do the inputs hold?

Whatever a person may have got wrong is found here, in a sentence, before Ray or a model is started.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from captionlib.config import to_dict
from jobs import record
from jobs.export import FORMATS
from jobs.fetch import Denied, TransportFault, is_local
from jobs.manifest import ROWS_PER_GROUP, Manifest, delete_manifest
from jobs.outputs import PartFiles
from jobs.settings import PartSettings
from jobs.sidecar import Sidecar
from jobs.sources import Sources
from jobs.storage import Folder

_PACKAGE = "/runtime_resources/working_dir_files/"


@contextlib.contextmanager
def reserved(output: Folder) -> Iterator[None]:
    """One run at a time per output folder. A lock of the operating system: it goes when the process goes."""
    try:
        output.check_writable()
    except (OSError, ValueError) as error:
        raise ValueError(f"the output {output.url} cannot be written: {error}") from error
    if not output.is_local:
        yield
        return
    import fcntl

    with open(f"{output.url}/.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another run is writing to {output.url}: wait for it, or choose another output"
            ) from error
        yield


def check_places(*paths: str) -> None:
    """Whatever a job reads and writes must outlive it.

    Raises:
        ValueError: a path lies in the package of `ray job submit`, as each relative path does there.
    """
    for path in paths:
        if is_local(path) and _PACKAGE in os.path.abspath(os.path.expanduser(path.removeprefix("file://"))):
            raise ValueError(
                f"{path} lies in the copy of the code that `ray job submit` makes for a job, and goes with it: give a "
                "URL such as s3://…, or the whole path of a folder that all machines share"
            )


def check_inputs(sources: Sources) -> None:
    """Find an image in the inputs, before anything that is there is touched.

    Raises:
        ValueError: an input does not exist or cannot be listed, or they hold no images.
    """
    inputs = " ".join(sources.inputs)
    try:
        found = [sources.first(text) for text in sources.inputs]
    except (Denied, TransportFault, OSError) as error:
        raise ValueError(f"the input {inputs} cannot be listed: {error}") from error
    if not any(found):
        raise ValueError(f"there are no images in {inputs}: {sources.looked_for}")


def open_output(
    output: Folder, outputs: Mapping[str, PartFiles], kind: str, identity: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any]:
    """The record of an output that may be added to, which is cleaned of what an interrupted run left.

    Args:
        outputs: the last one's files say what is finished.
        kind: of the job.
        identity: whatever decides the rows: an output never mixes two.

    Raises:
        ValueError: it is another job's, or was made with other settings, or parts of it are missing.
    """
    stored = record.read_record(output)
    if stored.get("job", kind) != kind:
        raise ValueError(f"{output.url} is the output of another job, {stored['job']}: choose another folder")
    if overwrite:
        _empty(output, outputs)
        return {}
    there = stored.get("identity")
    if there is not None:
        different = record.differences(there, identity)
        if different and not list(outputs.values())[-1].finished():
            _empty(output, outputs)  # there is no row yet that others could not be added to
            return {}
        if different:
            raise ValueError(
                f"{output.url} was made with other settings: {'; '.join(different)}. Choose another output, use the "
                "same settings, or give --overwrite to start anew"
            )
    for files in outputs.values():
        files.tidy()
    finished = list(outputs.values())[-1].finished()
    if finished and there is None:
        raise ValueError(
            f"{output.url} holds finished files but no {record.NAME} that says how they were made: put it back, or "
            "give --overwrite to start anew"
        )
    known = Manifest.open(output / "manifest").num_images
    if finished and finished[-1].last >= known:
        raise ValueError(
            f"{output.url} holds rows up to image {finished[-1].last}, but its manifest knows {known}: put the "
            "manifest's files back, or give --overwrite to start anew"
        )
    return stored


def _empty(output: Folder, outputs: Mapping[str, PartFiles]) -> None:
    for files in reversed(list(outputs.values())):
        files.delete()
    delete_manifest(output / "manifest")
    output.delete(record.NAME)
    for name in ("report.html", *(f"{kind}.{format_}" for kind in outputs for format_ in FORMATS)):
        output.delete(name)


def list_inputs(
    sources: Sources, output: Folder, stored: Mapping[str, Any], sidecar: Sidecar | None = None
) -> Manifest:
    """The manifest of an output, with what is new in the inputs.

    Args:
        stored: the record of the output.
        sidecar: what will write beside the images.

    Raises:
        ValueError: an input cannot be listed, or holds images that nothing can be written beside.
    """

    def note(seen: int) -> None:
        if seen >= 100_000 and seen % 100_000 < ROWS_PER_GROUP:
            print(f"listed {seen:,} images", file=sys.stderr, flush=True)

    manifest = Manifest.open(output / "manifest")
    runs = stored.get("runs") or [{}]
    asked_before = runs[-1].get("settings", {}).get("source", {})
    is_asked_again = not record.differences(asked_before, to_dict(sources.settings))
    try:
        columns = manifest.columns() or sources.columns()
        found = sources.list(manifest.whole_shards() if is_asked_again else ())
        return manifest.append(found if sidecar is None else sidecar.check(found), note, columns)
    except (Denied, TransportFault) as error:
        raise ValueError(f"the input {' '.join(sources.inputs)} cannot be listed: {error}") from error


def for_record(settings: PartSettings) -> dict[str, Any]:
    """The settings as run.json may hold them: without passwords."""
    values = to_dict(settings)
    values["input"] = without_password(settings.input)
    values["also"] = [without_password(text) for text in settings.also]
    values["output"] = without_password(settings.output)
    if settings.source.root is not None:
        values["source"]["root"] = without_password(settings.source.root)
    return values


def without_password(url: str) -> str:
    """A URL without `user:password@` and without its query, which may be a signature."""
    if "://" not in url:
        return url
    return re.sub(r"://[^/@]*@", "://", url).partition("?")[0]
