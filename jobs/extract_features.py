"""Run an encoder over every image of a folder or bucket, so that decoders can be trained on its features.

    python -m jobs.extract_features photos features --flip --crops 4
    python -m jobs.extract_features s3://bucket/photos features --encoder.kind torchvision --encoder.name resnet50

The folder features/features has one row per image: path and features (float16, N * D), or an error. Running the same
command again resumes an interrupted job and processes new images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from captionlib.config import FEATURE_BATCH, EncoderConfig, to_dict
from captionlib.storage.paths import is_local
from jobs.batch.settings import FeatureSettings
from jobs.cli.arguments import parse
from jobs.cli.encoder import EncoderSettings
from jobs.outputs import run_record, schemas

if TYPE_CHECKING:
    from jobs.batch.feature_model import FeatureFactory
    from jobs.cluster.resources import Plan

PROG = "python -m jobs.extract_features"
RENAMED = {
    "--encoder": "--encoder.name",
    "--kind": "--encoder.kind",
    "--features": "--encoder.features",
    "--size": "--encoder.size",
    "--model": "--encoder.checkpoint",
}
"""Flags of earlier versions, and what they are called now, as in jobs.train."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 complete, 1 incomplete, 2 invalid request, 130 interrupted."""
    settings = parse(FeatureSettings, argv, prog=PROG, description=__doc__ or "", renamed=RENAMED)
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: extract_features(settings))


def extract_features(settings: FeatureSettings) -> int:
    """Encode every image that has no row yet; return the exit code.

    Raises:
        ValueError: the settings, the input, the output or the encoder are wrong.
        jobs.cli.errors.JobIncomplete: the job was started and is not complete.
    """
    from captionlib.checkpoints import weights_fingerprint
    from captionlib.engines.arithmetic import arithmetic
    from captionlib.images.transforms import EncoderSquare
    from jobs.batch.feature_model import FeatureFactory, feature_folders, load_encoder
    from jobs.batch.job import BatchJob
    from jobs.batch.run import run_batch_job
    from jobs.batch.summary import print_summary

    encoder = _describe(settings.encoder)
    # The encoder is built here to report missing weights at once, and to record the fingerprint of the weights.
    fingerprint = weights_fingerprint(load_encoder(encoder, settings.encoder.checkpoint))
    identity = {
        "schema_version": schemas.FEATURES_VERSION,
        "features": "binary float16",  # earlier versions wrote lists of numbers; an output must not mix both
        "encoder": to_dict(encoder),
        "weights": fingerprint,
        "flip": settings.flip,
        "crops": settings.crops,
    }
    metadata = {
        "schema_version": str(schemas.FEATURES_VERSION),
        "version": run_record.versions().get("captionlib", "unknown"),
    }

    model = settings.encoder.checkpoint
    if model not in (None, "default") and is_local(model):
        model = os.path.abspath(os.path.expanduser(model))

    def factory(plan: Plan) -> FeatureFactory:
        batch_size = settings.work.batch_size or (FEATURE_BATCH.gpu if plan.actor_gpus else FEATURE_BATCH.cpu)
        return FeatureFactory(
            encoder, model, fingerprint, settings.flip, settings.crops, batch_size, plan.actor_threads, metadata
        )

    job = BatchJob(
        kind="extract_features",
        verb="encoded",
        folders=feature_folders(flip=settings.flip, crops=settings.crops),
        identity=identity,
        transform=EncoderSquare(encoder.preprocessing),
        factory=factory,
        arithmetic=lambda gpu: arithmetic("auto", gpu=gpu),
        compact=False,  # the files are large enough: the features of a chunk take tens of megabytes
    )
    outcome = run_batch_job(job, settings)
    if not settings.quiet:
        print_summary(outcome, job.verb)
    return 0 if outcome.counts.done or not outcome.counts.failed else 1


def _describe(settings: EncoderSettings) -> EncoderConfig:
    if settings.checkpoint is None:
        return settings.describe()
    from captionlib.checkpoints import check_checkpoint, read_config, resolve_checkpoint

    directory = resolve_checkpoint(settings.checkpoint)
    check_checkpoint(directory)
    return settings.describe_stored(read_config(directory).model.encoder, settings.checkpoint)


if __name__ == "__main__":
    sys.exit(main())
