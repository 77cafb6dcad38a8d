"""A look ahead: what the inputs hold, what the first images are captioned as, and how long all of them would take."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterator

from jobs.fetch import Denied, TransportFault
from jobs.listing import Listed
from jobs.manifest import Manifest, delete_manifest
from jobs.outputs import Counts, PartFiles
from jobs.part_job import Outcome, PartJob
from jobs.prepare import check_inputs, check_places
from jobs.progress import format_seconds
from jobs.ranges import IdRange, total
from jobs.rounds import work_on
from jobs.settings import CaptionSettings
from jobs.sources import Sources
from jobs.storage import Folder
from jobs.summary import print_captions

SAMPLE = 100
IMAGES_PER_PART = 10
"""Small, so that some parts are finished after the model is warm."""
SHOWN = 5
SHORTEST_SECONDS = 0.5
"""A rate that was measured for less means nothing."""


def dry_run(job: PartJob, settings: CaptionSettings) -> int:
    """Count, caption a sample, print what a run would take; returns the exit code.

    Raises:
        ValueError, Stopped: as `run_job`.
    """
    check_places(*settings.inputs, settings.output)
    sources = Sources(settings.inputs, settings.source)
    check_inputs(sources)
    output = Folder.of(settings.output)
    count, num_bytes, sample = _count(sources, job)
    finished = total(PartFiles(output / job.folders[-1], job.folders[-1]).finished())
    left = max(0, count - finished)
    print(f"{count:,} images" + (f", {num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else ""), end="")
    print(f"; {finished:,} have a row already" if finished else "")
    with _folder_for_now(output, job) as trial:
        outcome = _caption(job, settings, trial, sample)
        print(f"the first {len(sample)}: {outcome.counts.done} {job.verb}, {outcome.counts.failed} failed")
        if outcome.counts.done:
            print_captions(outcome, settings.show or SHOWN)
    seconds = outcome.phases.get("other images", 0.0)
    if seconds < SHORTEST_SECONDS:
        print("they are too few to say how long the others would take")
    else:
        rate = (len(sample) - IMAGES_PER_PART) / seconds
        whole = outcome.start_up_seconds + left / rate
        print(f"{rate:.1f} images/s once warm: the {left:,} that are left would take about {format_seconds(whole)}")
    return 0


def _count(sources: Sources, job: PartJob) -> tuple[int, int, list[Listed]]:
    """All images, their bytes as far as these are known, and the first of them."""
    count, num_bytes = 0, 0
    sample: list[Listed] = []
    found = sources.list()
    try:
        for image in found if job.sidecar is None else job.sidecar.check(found):
            count += 1
            num_bytes += image.size or 0
            if len(sample) < SAMPLE:
                sample.append(image)
    except (Denied, TransportFault) as error:
        raise ValueError(f"the input {' '.join(sources.inputs)} cannot be listed: {error}") from error
    return count, num_bytes, sample


def _caption(job: PartJob, settings: CaptionSettings, trial: Folder, sample: list[Listed]) -> Outcome:
    manifest = Manifest.open(trial / "manifest").append(sample)
    outputs = {name: PartFiles(trial / name, name) for name in job.folders}
    outcome = Outcome(trial, manifest, outputs[job.folders[-1]], Counts(0, 0), job.identity)
    small_parts = dataclasses.replace(settings.work, images_per_part=IMAGES_PER_PART)
    todo = [IdRange(0, manifest.num_images - 1)]
    sampling = dataclasses.replace(settings, work=small_parts)
    work_on(dataclasses.replace(job, sidecar=None), sampling, outputs, outcome, todo, {})
    counted = outcome.files.count(outcome.files.finished())
    outcome.counts = Counts(sum(c.done for c in counted.values()), sum(c.failed for c in counted.values()))
    return outcome


@contextlib.contextmanager
def _folder_for_now(output: Folder, job: PartJob) -> Iterator[Folder]:
    """A hidden folder in the output, since all machines see that; at the end it is gone, and so is an empty output."""
    trial = output / f".dry-run-{uuid.uuid4().hex[:8]}"
    try:
        yield trial
    finally:
        for name in job.folders:
            PartFiles(trial / name, name).delete()
        delete_manifest(trial / "manifest")
        if trial.is_local:
            shutil.rmtree(trial.url, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(output.url)
