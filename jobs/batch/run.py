"""Runs a batch job from listing the inputs to the final counts; shared by the caption job and the feature job.

    list → manifest → remaining ids → chunks through a pipeline, in rounds → compact → count → run.json

No per-image state is kept in memory, and finished work does not depend on this process staying alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from typing import Any

from jobs.batch.job import BatchJob, RunResult
from jobs.batch.manifest import KnownTexts, Manifest
from jobs.batch.ray_pipeline import PipelineError
from jobs.batch.resume import check_inputs, for_record, list_inputs, open_output, output_lock
from jobs.batch.rounds import LARGEST_DEFAULT_CHUNK, run_rounds
from jobs.batch.row_images import RowImages
from jobs.batch.settings import BatchSettings
from jobs.cli.errors import JobIncomplete
from jobs.cli.exit_codes import RESUME_HINT
from jobs.cli.masking import masked
from jobs.cluster.session import ClusterError
from jobs.inputs.sources import Sources
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles, Counts, FileCounts
from jobs.outputs.export import export, formats_there
from jobs.outputs.id_ranges import IdRange, subtract
from jobs.storage.folder import Folder
from jobs.storage.paths import check_paths_outlive_job
from jobs.storage.read import configure_inputs

SECONDS_BETWEEN_RECORDS = 5.0
"""Minimum interval between updates of run.json in a bucket."""


def run_batch_job(job: BatchJob, settings: BatchSettings) -> RunResult:
    """Process every input image that has no row in the output yet.

    Raises:
        ValueError: the settings, the inputs or the output are wrong; nothing was started.
        JobIncomplete: the job was started and is not complete.
    """
    started = time.monotonic()
    output = Folder.of(settings.output)
    outputs = {name: ChunkFiles(output / name, name) for name in job.folders}
    main = outputs[job.folders[-1]]
    check_paths_outlive_job(*settings.inputs, settings.output)
    configure_inputs(settings.access)
    sources = Sources(settings.inputs, settings.source)
    check_inputs(sources)
    identity = dict(job.identity)
    if settings.source.columns:
        identity["columns"] = list(settings.source.columns)
    with output_lock(output):
        stored = open_output(output, outputs, job.kind, identity, overwrite=settings.overwrite)
        manifest = list_inputs(sources, output, stored, job.sidecar, settings.limit)
        job = _with_own_names(job, manifest)
        planned = [IdRange(0, manifest.num_images - 1)]
        todo = subtract(planned, main.finished())
        redo = main.split_for_redo(LARGEST_DEFAULT_CHUNK, "errors" if settings.retry_errors else "deferred")
        outcome = RunResult(output, manifest, main, Counts(0, 0), identity)
        outcome.left_out = dict(sources.left_out.counts.most_common())
        stored["not_images"] = outcome.left_out
        outcome.phases["listing"] = time.monotonic() - started
        if not todo and not redo:
            missing = set(job.formats) - set(formats_there(output, main))
            if missing or stored.get("state") != "complete":  # or killed between its last image and its end
                _finish(job, outcome, settings)
                stored |= {"state": "complete", "images": _numbers(job, outcome, main.totals())}
                run_record.write_record(output, stored)
            outcome.counts = _count(main, manifest)
            return outcome
        run: dict[str, Any] = {
            "started": run_record.now(),
            "settings": for_record(settings),
            "versions": run_record.versions(job.packages),
        }
        stored |= {
            "job": job.kind,
            "state": "running",
            **job.about,
            "identity": identity,
            "inputs": [masked(text) for text in settings.inputs],
            "runs": [*stored.get("runs", []), run],
            "images": _numbers(job, outcome, main.totals()),
        }
        run_record.write_record(output, stored)
        outcome.run = run
        live = _LiveRecord(job, outcome, stored)
        try:
            run_rounds(job, settings, outputs, outcome, todo, redo, live.note)
            _finish(job, outcome, settings)
            outcome.phases["end"] = time.monotonic() - started - sum(outcome.phases.values())
            stored["state"] = "complete"
        except ClusterError as error:
            run["stopped"] = str(error)
            raise
        except (JobIncomplete, PipelineError, OSError) as error:
            stopped = _incomplete(error, main, manifest)
            run["stopped"] = str(stopped)
            raise stopped from error
        except BaseException as error:
            run["stopped"] = str(error) or type(error).__name__
            raise
        finally:
            outcome.seconds = time.monotonic() - started
            _note_end(job, outcome, stored)
        return outcome


def _with_own_names(job: BatchJob, manifest: Manifest) -> BatchJob:
    """The job with a text file of its own for each image."""
    if job.sidecar is None:
        return job
    sidecar = job.sidecar.without_collisions(manifest.paths(), KnownTexts().add_new)
    if sidecar.full_names:
        print(
            f"{len(sidecar.full_names):,} images have a name that another image has with another ending; their text "
            f"files are called as {os.path.basename(min(sidecar.full_names))}{sidecar.ending}",
            file=sys.stderr,
        )
    return dataclasses.replace(job, sidecar=sidecar)


def _finish(job: BatchJob, outcome: RunResult, settings: BatchSettings) -> None:
    """Merge small files, count the rows and write the exports."""
    if job.compact:
        outcome.files.compact()
    outcome.counts = _count(outcome.files, outcome.manifest)
    formats = sorted({*job.formats, *formats_there(outcome.output, outcome.files)})
    with RowImages(outcome.manifest, settings.source.image_column) as images:
        export(outcome.output, outcome.files, formats, images.read)


def _numbers(job: BatchJob, outcome: RunResult, rows: FileCounts) -> dict[str, int]:
    return {"planned": outcome.manifest.num_images, job.verb: rows.done, "failed": rows.failed}


class _LiveRecord:
    """Keeps the counts in run.json up to date while the job runs, so that they are true even after SIGKILL."""

    def __init__(self, job: BatchJob, outcome: RunResult, stored: dict[str, Any]) -> None:
        self.job, self.outcome, self.stored = job, outcome, stored
        self._next = 0.0

    def note(self, rows: FileCounts) -> None:
        """Write the number of rows: after every chunk on a disk, every few seconds in a bucket."""
        self.stored["images"] = _numbers(self.job, self.outcome, rows)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.0 if self.outcome.output.is_local else SECONDS_BETWEEN_RECORDS)
        with contextlib.suppress(OSError):  # it is written again at the end
            run_record.write_record(self.outcome.output, self.stored, durable=False)


def _note_end(job: BatchJob, outcome: RunResult, stored: dict[str, Any]) -> None:
    """Record in run.json how a run ended."""
    speed = outcome.images_per_second
    outcome.run["seconds"] = round(outcome.seconds, 1)
    outcome.run["start_up_seconds"] = round(outcome.start_up_seconds, 1)
    outcome.run["seconds_by_phase"] = {phase: round(seconds, 1) for phase, seconds in outcome.phases.items()}
    outcome.run["images"] = outcome.images
    outcome.run["images_per_second"] = None if speed is None else round(speed, 1)
    if stored["state"] == "running":
        stored["state"] = "incomplete"
    try:
        stored["images"] = _numbers(job, outcome, outcome.files.totals())
        run_record.write_record(outcome.output, stored)
    except (OSError, ValueError) as error:  # the end itself, and perhaps an error on its way, matters more
        print(f"{run_record.NAME} could not be written: {error}", file=sys.stderr)


def _incomplete(error: Exception, files: ChunkFiles, manifest: Manifest) -> JobIncomplete:
    """Return the reason for stopping together with the number of images that remain."""
    try:
        counts = files.totals()
        left = manifest.num_images - counts.done - counts.failed
    except (OSError, ValueError):  # the output itself is what fails
        return JobIncomplete(f"{error}. {RESUME_HINT}")
    if not left:
        return JobIncomplete(f"{error}. All images have a row; run the same command again to finish")
    images = "1 image is" if left == 1 else f"{left:,} images are"
    return JobIncomplete(
        f"{images} not done: {error}. Finished rows are kept; run the same command again for the others"
    )


def _count(files: ChunkFiles, manifest: Manifest) -> Counts:
    """Count the rows in the output's files and check that there is exactly one for each image of the manifest.

    Raises:
        JobIncomplete: rows are missing.
    """
    missing = subtract([IdRange(0, manifest.num_images - 1)], files.finished())
    if missing:
        raise JobIncomplete(f"their rows are missing in the output, the first is image {missing[0].first}")
    rows = files.totals()
    if rows.deferred:
        raise JobIncomplete(f"{rows.deferred} of the output's rows are of images that could not be fetched yet")
    return Counts(rows.done, rows.failed)
