"""Train a caption decoder, data-parallel on Ray Train: features and captions → a checkpoint for `jobs.caption`.

    python -m jobs.extract_features PHOTOS FEATURES
    python -m jobs.train FEATURES RUN --data.root FLICKR8K
    python -m jobs.caption PHOTOS CAPTIONS --model RUN/best

After each epoch the dev images are captioned with the search that the checkpoint will use, and scored. Running the same
command again resumes an interrupted run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs.cli.arguments import parse
from jobs.training.settings import TrainSettings, defaults_of

PROG = "python -m jobs.train"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 finished, 1 stopped early, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    defaults = defaults_of(arguments)
    settings = parse(TrainSettings, arguments, prog=PROG, description=__doc__ or "", defaults=defaults).resolved()
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: train(settings))


def train(settings: TrainSettings) -> int:
    """Check the settings and data, train on Ray, and export the best epoch; return the exit code.

    Raises:
        ValueError: the settings, the input or the folder of the run are wrong.
        jobs.cli.errors.JobIncomplete: training was started and is not finished.
    """
    from jobs.cluster.submitted_code import check_paths_outlive_job
    from jobs.training.data import prepare
    from jobs.training.export import export_best, find_encoder
    from jobs.training.model import check_model
    from jobs.training.report import RunReport
    from jobs.training.run import BEST, check_run, clean, fit

    check_paths_outlive_job(settings.run)
    prepared = prepare(settings)
    check_model(prepared)
    encoder = find_encoder(prepared)
    if check_run(settings, prepared):
        print(f"Nothing to do: the run is finished, its best checkpoint is {settings.run}/{BEST}")
        return 0
    clean(settings.run)
    print(prepared.summary(), file=sys.stderr, flush=True)
    report = RunReport(prepared)
    directory = export_best(prepared, encoder, fit(settings, prepared, report.write), report)
    print(f"The best epoch's checkpoint: {directory}")
    print(f"To caption with it: python -m jobs.caption PHOTOS OUT --model {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
