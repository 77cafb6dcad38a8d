"""Caption every image of a folder or bucket, on one machine or on a Ray cluster.

    python -m jobs.caption photos captions
    python -m jobs.caption s3://bucket/photos s3://bucket/captions --address auto

The result has one row per image, with a caption or an error: `pandas.read_parquet("captions/captions")`. Running the
same command again resumes an interrupted job and processes new images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from captionlib.config import to_dict
from captionlib.errors import UserError
from jobs.batch.settings import CaptionSettings, default_search_of
from jobs.cli.arguments import parse
from jobs.outputs import run_record, schemas

PROG = "python -m jobs.caption"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 complete, 1 incomplete, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings = parse(
        CaptionSettings,
        arguments,
        prog=PROG,
        description=__doc__ or "",
        defaults={"search": default_search_of(arguments)},
    )
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: caption(settings))


def caption(settings: CaptionSettings) -> int:
    """Caption every image that has no row yet; return the exit code.

    Raises:
        UserError: the settings, the input, the output or the model are wrong.
        jobs.cli.errors.JobIncomplete: the job was started and is not complete.
    """
    from captionlib.captioners.zoo import open_captioner
    from captionlib.masking import masked
    from captionlib.storage.folder import Folder
    from jobs.batch.caption_model import CaptionFactory
    from jobs.batch.gallery import write_report
    from jobs.batch.job import BatchJob
    from jobs.batch.run import run_batch_job
    from jobs.batch.summary import print_captions, print_summary
    from jobs.cluster.resources import Plan
    from jobs.outputs.export import EXPORTS
    from jobs.outputs.sidecar import Sidecar

    captioner = open_captioner(settings.model, settings.search, settings.captioner)
    search = to_dict(captioner.search.effective())
    identity: dict[str, Any] = {
        "schema_version": schemas.CAPTIONS_VERSION,
        "model": captioner.fingerprint,
        "search": search,
        **captioner.settings,
    }
    if settings.min_confidence is not None:
        if not captioner.has_confidence:
            raise UserError(
                f"--min-confidence needs a model that knows its confidence, and {captioner.name} does not: calibrate a "
                "checkpoint with python -m jobs.calibrate"
            )
        identity["min_confidence"] = settings.min_confidence
    sidecar = None
    if settings.sidecar is not None:
        folder = None if settings.sidecar_folder is None else Folder.of(settings.sidecar_folder).url
        sidecar = Sidecar(
            settings.sidecar,
            settings.sidecar_prefix,
            settings.sidecar_suffix,
            settings.sidecar_ending,
            folder,
            tuple(Folder.of(text).url for text in settings.inputs),
            is_sharded=settings.shard is not None,
        )
        # Sidecar files are part of the identity, because otherwise only some images of an output might have one.
        identity["sidecar"] = {name: getattr(sidecar, name) for name in ("mode", "prefix", "suffix")}
        identity["sidecar"] |= {} if sidecar.ending == ".txt" else {"ending": sidecar.ending}
        identity["sidecar"] |= {} if folder is None else {"folder": masked(folder)}
    metadata = {
        "schema_version": str(schemas.CAPTIONS_VERSION),
        "model": captioner.fingerprint,
        "model_name": captioner.name,
        "search": json.dumps(search, sort_keys=True),
        "version": run_record.versions().get("captionlib", "unknown"),
    }

    def factory(plan: Plan) -> CaptionFactory:
        return CaptionFactory(
            captioner, settings.work.batch_size, plan.actor_threads, metadata, settings.min_confidence
        )

    job = BatchJob(
        kind="caption",
        verb="captioned",
        folders=("captions",),
        identity=identity,
        transform=captioner.transform,
        arithmetic=lambda gpu: captioner.arithmetic(gpu=gpu),
        factory=factory,
        needs=captioner.needs,
        about={"model": captioner.name},
        packages=captioner.packages,
        compact=True,
        sidecar=sidecar,
        formats=tuple(name for name in EXPORTS if name in settings.export or getattr(settings, name, False)),
    )
    if settings.dry_run:
        from jobs.batch.dry_run import dry_run

        return dry_run(job, settings)
    outcome = run_batch_job(job, settings)
    if settings.report and (outcome.run or not outcome.output.exists("report.html")):
        write_report(outcome, settings)
    if not settings.quiet:
        print_summary(outcome, job.verb)
    if settings.show:
        print_captions(outcome, settings.show)
    if outcome.counts.failed and not outcome.counts.done:
        print(f"{PROG}: no image could be captioned; the column `error` says why", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
