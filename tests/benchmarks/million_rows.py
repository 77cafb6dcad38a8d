"""A manifest of a million paths through plan, resume and write, without images or a model: what the driver costs.

    python tests/benchmarks/million_rows.py [--rows 1000000] [--images-per-chunk 10000]

Prints seconds and peak memory of the driver; fails above 1.5 GiB. No path exists, so each row becomes an error.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.config import Preprocessing
from captionlib.images.transforms import EncoderSquare
from jobs.batch.job import BatchJob, RunResult
from jobs.batch.run import run_batch_job
from jobs.batch.settings import BatchSettings, FaultSettings, WorkSettings
from jobs.inputs.settings import SourceSettings
from jobs.outputs import schemas

LIMIT_GIB = 1.5


class NoModel:
    """Is given no picture, and makes no caption."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        return {"captions": schemas.CAPTIONS}

    def load(self) -> NoModel:
        return self

    def __call__(self, pixels: np.ndarray, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        names = ("caption", "log_prob", "num_tokens", "captions")
        return {"captions": {name: pa.array([], schemas.CAPTIONS.field(name).type) for name in names}}


def run(source: Path, output: Path, images_per_chunk: int | None) -> RunResult:
    """The whole job, with a column that is carried along."""
    job = BatchJob(
        kind="stub",
        verb="captioned",
        folders=("captions",),
        identity={"model": "none"},
        transform=EncoderSquare(Preprocessing(size=16)),
        factory=lambda plan: NoModel(),  # type: ignore[arg-type, return-value]
        compact=True,
    )
    settings = BatchSettings(
        input=str(source),
        output=str(output),
        source=SourceSettings(columns=("label",)),
        work=WorkSettings(images_per_chunk=images_per_chunk),
        faults=FaultSettings(max_error_share=1.0),
    )
    return run_batch_job(job, settings)


def peak_gib() -> float:
    """Of this process, which is the driver."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def report(what: str, outcome: RunResult, began: float) -> None:
    """One line of figures."""
    print(
        f"{what}: {outcome.images:,} images in {time.monotonic() - began:.0f} s, of which plan "
        f"{outcome.run['seconds_by_phase']['listing']:.1f} s; driver's peak {peak_gib():.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Run once over all, once with a chunk of the output gone, and once with nothing to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images-per-chunk", type=int, help="default: as the job chooses")
    arguments = parser.parse_args()
    num_rows, per_chunk = arguments.rows, arguments.images_per_chunk
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output = folder / "list.parquet", folder / "out"
        paths = [f"/nowhere/photos/{i % 1000:03d}/{i:012d}-0123456789abcdef.jpg" for i in range(num_rows)]
        pq.write_table(pa.table({"path": paths, "label": pa.array(range(num_rows), pa.int64())}), source)
        del paths
        began = time.monotonic()
        outcome = run(source, output, per_chunk)
        report("all", outcome, began)
        assert outcome.counts == (0, num_rows), outcome.counts
        last = sorted((output / "captions").glob("*.parquet"))[-1]
        gone = pq.read_metadata(last).num_rows
        last.unlink()
        began = time.monotonic()
        outcome = run(source, output, per_chunk)
        report("resumed", outcome, began)
        assert (outcome.images, outcome.counts) == (gone, (0, num_rows)), (outcome.images, outcome.counts)
        began = time.monotonic()
        report("nothing to do", run(source, output, per_chunk), began)
        labels = pq.read_table(output / "captions", columns=["image_id", "label"]).sort_by("image_id")
        assert labels.column("label").equals(labels.column("image_id"))
    assert peak_gib() < LIMIT_GIB, f"the driver took {peak_gib():.2f} GiB, {LIMIT_GIB} is the limit"


if __name__ == "__main__":
    main()
