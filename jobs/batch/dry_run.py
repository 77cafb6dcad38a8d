"""Previews a job: counts the images, captions a sample, and estimates the duration of the whole job."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterator

from captionlib.errors import UserError
from captionlib.storage.errors import AccessDenied, TransportFault
from captionlib.storage.folder import Folder
from captionlib.storage.read import configure_inputs
from jobs.batch.job import BatchJob, RunResult
from jobs.batch.manifest import Manifest, delete_manifest
from jobs.batch.resume import check_inputs
from jobs.batch.rounds import Remaining, Rounds
from jobs.batch.settings import CaptionSettings
from jobs.batch.shards import output_of
from jobs.batch.summary import print_captions
from jobs.cli.progress import format_seconds
from jobs.cluster.submitted_code import check_paths_outlive_job
from jobs.inputs.listing import ImageRef
from jobs.inputs.run_shard import RunShard
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles, Counts
from jobs.outputs.id_ranges import IdRange, total

SAMPLE = 100
IMAGES_PER_CHUNK = 10
"""Small, so that several chunks are finished after the model is warm."""
SHOWN = 5
SHORTEST_SECONDS = 0.5
"""A rate measured over fewer seconds is not reported."""


def dry_run(job: BatchJob, settings: CaptionSettings) -> int:
    """Count the images, caption a sample and print the estimate; return the exit code.

    Raises:
        UserError, JobIncomplete: as `run_batch_job`.
    """
    check_paths_outlive_job(*settings.inputs, settings.output)
    configure_inputs(settings.access)
    sources = Sources(settings.inputs, settings.source, shard=settings.run_shard)
    check_inputs(sources)
    output = output_of(settings, job.folders)
    count, num_bytes, sample = _count(sources, job)
    finished = total(ChunkFiles(output / job.folders[-1], job.folders[-1]).finished())
    left = max(0, count - finished)
    print(f"{count:,} images" + (f", {num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else ""), end="")
    print(f"; {finished:,} have a row already" if finished else "")
    if sources.left_out.counts:
        print(sources.left_out)
    if not sample:
        return 0
    with _folder_for_now(output, job) as trial:
        outcome = _caption(job, settings, trial, sample)
        print(f"the first {len(sample)}: {outcome.counts.done} {job.verb}, {outcome.counts.failed} failed")
        if outcome.counts.done:
            print_captions(outcome, settings.show or SHOWN)
    seconds = outcome.figures.seconds_by_phase["other images"]
    if seconds < SHORTEST_SECONDS or len(sample) <= IMAGES_PER_CHUNK:
        print("they are too few to estimate the duration for the others")
    else:
        rate = (len(sample) - IMAGES_PER_CHUNK) / seconds
        whole = outcome.figures.start_up_seconds + left / rate
        print(f"{rate:.1f} images/s once warm: the remaining {left:,} would take about {format_seconds(whole)}")
    return 0


def _count(sources: Sources, job: BatchJob) -> tuple[int, int, list[ImageRef]]:
    """Count all images and their known bytes, and return the first images."""
    count, num_bytes = 0, 0
    sample: list[ImageRef] = []
    found = sources.list()
    try:
        for image in found if job.sidecar is None else job.sidecar.check(found):
            count += 1
            num_bytes += image.size or 0
            if len(sample) < SAMPLE:
                sample.append(image)
    except (AccessDenied, TransportFault) as error:
        raise UserError(f"the input {' '.join(sources.inputs)} cannot be listed: {error}") from error
    return count, num_bytes, sample


def _caption(job: BatchJob, settings: CaptionSettings, trial: Folder, sample: list[ImageRef]) -> RunResult:
    manifest = Manifest.open(trial / "manifest").append(sample)
    outputs = {name: ChunkFiles(trial / name, name) for name in job.folders}
    small_chunks = dataclasses.replace(settings.work, images_per_chunk=IMAGES_PER_CHUNK)
    todo = [IdRange(0, manifest.num_images - 1)]
    sampling = dataclasses.replace(settings, work=small_chunks)
    rounds = Rounds(dataclasses.replace(job, sidecar=None), sampling, outputs, manifest, Remaining(todo, {}))
    rounds.run()
    rows = rounds.files.totals()
    return RunResult(
        output=trial,
        manifest=manifest,
        files=rounds.files,
        counts=Counts(rows.done, rows.failed),
        identity=job.identity,
        figures=rounds.figures(),
    )


@contextlib.contextmanager
def _folder_for_now(output: Folder, job: BatchJob) -> Iterator[Folder]:
    """Create a hidden folder in the output, which all machines see, and delete it at the end."""
    trial = output / f".dry-run-{uuid.uuid4().hex[:8]}"
    try:
        yield trial
    finally:
        for name in job.folders:
            ChunkFiles(trial / name, name).delete()
        delete_manifest(trial / "manifest")
        if trial.is_local:
            shutil.rmtree(trial.url, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folder is not empty
                os.rmdir(output.url)
                if RunShard.of_folder(os.path.basename(output.url)) is not None:
                    os.rmdir(output.parent.url)
