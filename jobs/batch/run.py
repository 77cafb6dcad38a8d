"""Runs a batch job from listing the inputs to the final counts; shared by the caption job and the feature job.

    list → manifest → remaining ids → chunks through a pipeline, in rounds → compact → count → run.json

No per-image state is kept in memory, and finished work does not depend on this process staying alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from captionlib.cache import cache_folder
from captionlib.errors import UserError
from captionlib.masking import masked
from captionlib.storage.folder import Folder
from captionlib.storage.read import configure_inputs
from jobs.batch.job import BatchJob, Figures, RunResult
from jobs.batch.manifest import KnownTexts, Manifest
from jobs.batch.ray_pipeline import PipelineError
from jobs.batch.resume import check_inputs, for_record, list_inputs, open_output, output_lock
from jobs.batch.rounds import LARGEST_DEFAULT_CHUNK, Remaining, Rounds
from jobs.batch.row_images import RowImages
from jobs.batch.settings import BatchSettings
from jobs.batch.shards import output_of
from jobs.cli.errors import JobIncomplete
from jobs.cli.exit_codes import RESUME_HINT
from jobs.cluster.resources import Plan
from jobs.cluster.session import ClusterError
from jobs.cluster.submitted_code import check_paths_outlive_job
from jobs.inputs.sources import Sources
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles, Counts, FileCounts, Redo, sum_counts
from jobs.outputs.export import export, formats_there
from jobs.outputs.id_ranges import IdRange, subtract

SECONDS_BETWEEN_RECORDS = 5.0
"""Minimum interval between updates of run.json in a bucket."""


def run_batch_job(job: BatchJob, settings: BatchSettings) -> RunResult:
    """Process every input image that has no row in the output yet.

    Raises:
        UserError: the settings, the inputs or the output are wrong; nothing was started.
        JobIncomplete: the job was started and is not complete.
    """
    started = time.monotonic()
    check_paths_outlive_job(*settings.inputs, settings.output)
    configure_inputs(settings.access)
    sources = Sources(settings.inputs, settings.source, shard=settings.run_shard)
    check_inputs(sources)
    output = output_of(settings, job.folders)
    outputs = {name: ChunkFiles(output / name, name) for name in job.folders}
    identity = dict(job.identity)
    if settings.run_shard is not None:
        identity["shard"] = str(settings.run_shard)
    if settings.source.columns:
        identity["columns"] = list(settings.source.columns)
    with output_lock(output):
        stored = open_output(output, outputs, job.kind, identity, overwrite=settings.overwrite)
        manifest = list_inputs(sources, output, stored, job.sidecar, settings.limit)
        left_out = dict(sources.left_out.counts.most_common())
        stored |= {"job": job.kind, **job.about, "identity": identity, "not_images": left_out}
        stored |= {"folders": list(job.folders), "damaged_inputs": sorted(map(masked, sources.damaged))}
        run = _Run(_with_own_names(job, manifest), settings, output, outputs, manifest, stored)
        result = run.process(started)
        return dataclasses.replace(result, identity=identity, left_out=left_out)


class _Run:
    """One run of a job over an output whose lock is held.

    Args:
        stored: contents of run.json, which is kept up to date.
    """

    def __init__(
        self,
        job: BatchJob,
        settings: BatchSettings,
        output: Folder,
        outputs: Mapping[str, ChunkFiles],
        manifest: Manifest,
        stored: dict[str, Any],
    ) -> None:
        self.job, self.settings, self.output, self.outputs = job, settings, output, outputs
        self.manifest, self.stored = manifest, stored
        self.files = outputs[job.folders[-1]]
        self._next_record = 0.0

    def process(self, started: float) -> RunResult:
        """Process what remains, and finish the output.

        Args:
            started: start of the run, by time.monotonic().

        Raises:
            JobIncomplete: images remain.
        """
        self._check_arithmetic({self.job.arithmetic(False), self.job.arithmetic(True)})
        counted = self.files.count(self.files.finished())
        rows = sum_counts(counted.values())
        kind: Redo = "errors" if self.settings.retry_errors else "deferred"
        redo = self.files.split_for_redo(counted, LARGEST_DEFAULT_CHUNK, kind)
        todo = subtract([IdRange(0, self.manifest.num_images - 1)], counted)
        if not todo and not redo:
            self._finish_exports()
            return self._result(_count(self.files, self.manifest), time.monotonic() - started)
        listing = time.monotonic() - started
        run: dict[str, Any] = {
            "started": run_record.now(),
            "settings": for_record(self.settings),
            "versions": run_record.versions(self.job.packages),
        }
        self.stored |= {
            "state": "running",
            "inputs": [masked(text) for text in self.settings.inputs],
            "runs": [*self.stored.get("runs", []), run],
            "images": self._numbers(rows),
        }
        run_record.write_record(self.output, self.stored)
        rounds = Rounds(
            self.job,
            self.settings,
            self.outputs,
            self.manifest,
            Remaining(todo, redo, rows),
            on_plan=self._note_plan,
            on_commit=self._note_rows,
        )
        try:
            rounds.run()
            counts = self._finish()
            self.stored["state"] = "complete"
        except ClusterError as error:
            run["stopped"] = str(error)
            raise
        except (JobIncomplete, PipelineError, OSError) as error:
            stopped = _incomplete(error, self.files, self.manifest)
            run["stopped"] = str(stopped)
            raise stopped from error
        except BaseException as error:
            run["stopped"] = str(error) or type(error).__name__
            raise
        finally:
            figures, seconds = rounds.figures(), time.monotonic() - started
            phases = {"listing": listing, **figures.seconds_by_phase}
            if self.stored["state"] == "complete":
                phases["end"] = seconds - sum(phases.values())
            run |= _described(figures, phases, seconds)
            self._note_end()
        return self._result(counts, seconds, figures, run)

    def _result(
        self, counts: Counts, seconds: float, figures: Figures | None = None, run: Mapping[str, Any] | None = None
    ) -> RunResult:
        return RunResult(
            output=self.output,
            manifest=self.manifest,
            files=self.files,
            counts=counts,
            identity=self.job.identity,
            figures=figures or Figures(),
            seconds=seconds,
            run=run or {},
        )

    def _note_plan(self, resources: Plan) -> None:
        """Check and record how the rows of this run are computed, now that the machines are known."""
        here = self.job.arithmetic(resources.actor_gpus > 0)
        self._check_arithmetic({here})
        self.stored["arithmetic"] = here
        run_record.write_record(self.output, self.stored)

    def _check_arithmetic(self, possible: set[str | None]) -> None:
        """Check that the rows of this run can be computed as those that exist.

        Raises:
            UserError: they can't.
        """
        there, here = self.stored.get("arithmetic"), " or ".join(sorted(map(str, possible)))
        if there is not None and there not in possible and self.files.finished():
            raise UserError(
                f"the rows in {self.output.url} were computed in {there}, and this run would compute in {here}, which "
                "gives other results for some images: use the same kind of machine, choose with --engine, choose "
                "another output, or give --overwrite to start from the beginning"
            )

    def _finish_exports(self) -> None:
        """Write what is missing of a complete output, whose run may have been killed before its end."""
        missing = set(self.job.formats) - set(formats_there(self.output, self.files))
        if missing or self.stored.get("state") != "complete":
            self._finish()
            self.stored |= {"state": "complete", "images": self._numbers(self.files.totals())}
            run_record.write_record(self.output, self.stored)

    def _finish(self) -> Counts:
        """Merge small files, count the rows and write the exports."""
        if self.job.compact:
            self.files.compact()
        for files in self.outputs.values():
            files.tidy()  # of rows that another job has written as well, or that a listing had not shown yet
        counts = _count(self.files, self.manifest)
        formats = sorted({*self.job.formats, *formats_there(self.output, self.files)})
        with RowImages(self.manifest, self.settings.source.image_column) as images:
            export(self.output, self.files, formats, images.read)
        return counts

    def _numbers(self, rows: FileCounts) -> dict[str, int]:
        return {"planned": self.manifest.num_images, self.job.verb: rows.done, "failed": rows.failed}

    def _note_rows(self, rows: FileCounts) -> None:
        """Keep the counts in run.json true even after SIGKILL.

        The file is written after every chunk on a disk, and every few seconds in a bucket.
        """
        self.stored["images"] = self._numbers(rows)
        if time.monotonic() < self._next_record:
            return
        self._next_record = time.monotonic() + (0.0 if self.output.is_local else SECONDS_BETWEEN_RECORDS)
        with contextlib.suppress(OSError):  # it is written again at the end
            run_record.write_record(self.output, self.stored, durable=False)

    def _note_end(self) -> None:
        """Record in run.json how the run ended."""
        if self.stored["state"] == "running":
            self.stored["state"] = "incomplete"
        try:
            self.stored["images"] = self._numbers(self.files.totals())
            run_record.write_record(self.output, self.stored)
        except (OSError, ValueError) as error:  # the end itself, and perhaps an error on its way, matters more
            print(f"{run_record.NAME} could not be written: {error}", file=sys.stderr)


def _described(figures: Figures, phases: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Return the figures of a run as run.json contains them."""
    speed = figures.images_per_second
    return {
        "seconds": round(seconds, 1),
        "start_up_seconds": round(figures.start_up_seconds, 1),
        "seconds_by_phase": {phase: round(spent, 1) for phase, spent in phases.items()},
        "seconds_by_step": {step: round(spent, 1) for step, spent in figures.seconds_by_step.items()},
        "images": figures.images,
        "images_per_second": None if speed is None else round(speed, 1),
    }


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


def _incomplete(error: Exception, files: ChunkFiles, manifest: Manifest) -> JobIncomplete:
    """Return the reason for stopping together with the number of images that remain."""
    reason = _full_disks(files.folder) if isinstance(error, OSError) and error.errno == errno.ENOSPC else str(error)
    try:
        counts = files.totals()
        left = manifest.num_images - counts.done - counts.failed
    except (OSError, ValueError):  # the output itself is what fails
        return JobIncomplete(f"{reason}. {RESUME_HINT}")
    if not left:
        return JobIncomplete(f"{reason}. All images have a row; run the same command again to finish")
    images = "1 image is" if left == 1 else f"{left:,} images are"
    return JobIncomplete(
        f"{images} not done: {reason}. Finished rows are kept; run the same command again for the others"
    )


def _full_disks(output: Folder) -> str:
    """Return the message for a full disk, with the folders of this machine that a job writes to."""
    ray = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folders = [f"Ray's files ({ray}; RAY_TMPDIR moves them)", f"the cache ({cache_folder('')})"]
    if output.is_local:
        folders.insert(0, f"the output ({output.url})")
    return f"a disk is full: make room on that of {', '.join(folders[:-1])} or {folders[-1]}"


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
