"""Train a caption decoder, data-parallel on Ray Train: features and captions → a checkpoint that `jobs.caption` takes.

    python -m jobs.extract_features PHOTOS FEATURES
    python -m jobs.train FEATURES RUN --data.root FLICKR8K
    python -m jobs.caption PHOTOS CAPTIONS --model RUN/best

Every epoch ends with captions of the dev images, found by the search that will be used later, and their scores.
The same command started again goes on where the run stopped.
"""

from __future__ import annotations

import sys

from jobs.settings import parse
from jobs.train_settings import TrainSettings

_PROG = "python -m jobs.train"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    settings = parse(TrainSettings, argv, prog=_PROG, description=__doc__ or "")
    try:
        return train(settings)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"{_PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\n{_PROG}: stopped. Finished epochs are kept in {settings.run}; the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def train(settings: TrainSettings) -> int:
    """Check everything that can be known, train on Ray, and export the best epoch; the exit status."""
    from jobs.train_data import prepare
    from jobs.train_export import export_best
    from jobs.train_run import BEST, check_run, fit

    prepared = prepare(settings)
    if check_run(settings):
        directory = "/".join((*settings.storage(), BEST))
        print(f"Nothing to do: the run is finished, its best checkpoint is {directory}")
        return 0
    print(prepared.summary(), file=sys.stderr, flush=True)
    result = fit(settings, prepared)
    directory = export_best(settings, prepared, result)
    print(f"The best epoch's checkpoint: {directory}")
    print(f"To caption with it: python -m jobs.caption PHOTOS OUT --model {directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
