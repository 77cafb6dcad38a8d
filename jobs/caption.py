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
from pathlib import Path
from typing import Any

import captionlib
from captionlib.config import SearchConfig, from_dict, to_dict
from captionlib.errors import UserError
from jobs.batch.settings import CaptionSettings
from jobs.cli.arguments import parse, peek
from jobs.outputs import run_record, schemas

PROG = "python -m jobs.caption"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 complete, 1 incomplete, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    model = peek(arguments, "model") or "default"
    settings = parse(
        CaptionSettings,
        arguments,
        prog=PROG,
        description=__doc__ or "",
        defaults={"search": search_of(model)},
    )
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: caption(settings))


def caption(settings: CaptionSettings) -> int:
    """Caption every image that has no row yet; return the exit code.

    Raises:
        UserError: the settings, the input, the output or the checkpoint are wrong.
        jobs.cli.errors.JobIncomplete: the job was started and is not complete.
    """
    from captionlib.checkpoints import (
        INT8_ENCODER,
        check_checkpoint,
        checkpoint_fingerprint,
        read_config,
        resolve_checkpoint,
    )
    from jobs.batch.caption_model import CaptionFactory
    from jobs.batch.gallery import write_report
    from jobs.batch.job import BatchJob
    from jobs.batch.run import run_batch_job
    from jobs.batch.summary import print_captions, print_summary
    from jobs.cluster.resources import Plan
    from jobs.outputs.export import EXPORTS
    from jobs.outputs.sidecar import Sidecar
    from jobs.storage.folder import Folder
    from jobs.storage.paths import masked

    directory = resolve_checkpoint(settings.model)
    check_checkpoint(directory)
    encoder = read_config(directory).model.encoder
    if encoder.kind == "vectors":
        raise UserError(
            f"the checkpoint {settings.model} was trained on ready-made features and has no encoder for images: "
            "give one that has"
        )
    if settings.engine == "int8" and not (directory / INT8_ENCODER).is_file():
        raise UserError(
            f"the checkpoint {settings.model} has no encoder in 8-bit integers: make one that has with "
            "python -m jobs.quantize"
        )
    fingerprint = checkpoint_fingerprint(directory)
    search = to_dict(settings.search)
    identity: dict[str, Any] = {"schema_version": schemas.SCHEMA_VERSION, "model": fingerprint, "search": search}
    if settings.engine != "auto":
        identity["engine"] = settings.engine
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
        )
        # They come with the rows: an output some of whose images have one would be two outputs.
        identity["sidecar"] = {name: getattr(sidecar, name) for name in ("mode", "prefix", "suffix")}
        identity["sidecar"] |= {} if sidecar.ending == ".txt" else {"ending": sidecar.ending}
        identity["sidecar"] |= {} if folder is None else {"folder": masked(folder)}
    metadata = {
        "schema_version": str(schemas.SCHEMA_VERSION),
        "model": fingerprint,
        "search": json.dumps(search, sort_keys=True),
        "version": run_record.versions().get("captionlib", "unknown"),
    }
    # Each machine finds the checkpoint by itself: at the same path, or at a URL.
    is_elsewhere = settings.model == "default" or "://" in settings.model
    source = settings.model if is_elsewhere else str(directory.resolve())

    def factory(plan: Plan) -> CaptionFactory:
        batch_size = settings.work.batch_size or (512 if plan.actor_gpus else 32)
        return CaptionFactory(source, settings.search, batch_size, plan.actor_threads, metadata, settings.engine)

    job = BatchJob(
        kind="caption",
        verb="captioned",
        folders=("captions",),
        identity=identity,
        preprocessing=encoder.preprocessing,
        factory=factory,
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
    print_summary(outcome, job.verb)
    if settings.show:
        print_captions(outcome, settings.show)
    if outcome.counts.failed and not outcome.counts.done:
        print(f"{PROG}: no image could be captioned; the column `error` says why", file=sys.stderr)
        return 1
    return 0


def search_of(model: str) -> SearchConfig:
    """Return the search settings of a checkpoint; the defaults if it cannot be read, which is reported later."""
    if model == "default":
        folder = Path(captionlib.__file__).parent / "pretrained" / "default"
    elif "://" in model:
        from captionlib.checkpoints import CheckpointError, resolve_checkpoint

        try:
            folder = resolve_checkpoint(model)
        except CheckpointError:
            return SearchConfig()
    else:
        folder = Path(model).expanduser()
    # Without captionlib.checkpoints, which needs PyTorch: --help should not take seconds.
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return from_dict(SearchConfig, stored["search"])
    except (OSError, ValueError, KeyError, TypeError):
        return SearchConfig()


if __name__ == "__main__":
    sys.exit(main())
