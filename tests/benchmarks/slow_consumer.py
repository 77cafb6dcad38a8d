"""Whether memory stays bounded when the model is much slower than decoding, on a machine with 2 CPUs and 4 GiB.

    python tests/benchmarks/slow_consumer.py                        3,000 photos, about 4 minutes on 2 cores
    python tests/benchmarks/slow_consumer.py --slower 30 --photos 10000

A Ray node of its own gets two CPUs and the object store of a machine with 4 GiB. Photos are read and decoded as in a
real job; the model is a stub that sleeps ten times as long as decoding takes. Every second the benchmark samples the
memory of all processes (proportional set size, without the object store), the object store, and what Ray has spilled
to the disk. The figures of the second half of the run must not be above those of the first half by more than a tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pyarrow as pa
from benchmarks.photo_mill import make_images
from benchmarks.scale import StubModel

from captionlib.config import Preprocessing
from captionlib.images.transforms import EncoderSquare
from jobs.batch.job import BatchJob
from jobs.batch.model_stage import Processor
from jobs.batch.run import run_batch_job
from jobs.batch.settings import BatchSettings, WorkSettings
from jobs.outputs import schemas
from tests.faults.cluster import cluster
from tests.faults.processes import Session

GIB = 2**30
MACHINE_BYTES = 4 * GIB
STORE_SHARE = 0.3
"""Ray's own default."""
DECODED_PER_SECOND = 300
"""Images, on two cores."""


@dataclass(frozen=True)
class SlowFactory:
    """Makes models that sleep."""

    seconds_per_image: float

    def schemas(self) -> Mapping[str, pa.Schema]:
        return {"captions": schemas.CAPTIONS}

    def load(self) -> Processor:
        return SlowModel(self.seconds_per_image)


class SlowModel(StubModel):
    """Gives all images the same caption, after a while."""

    overlaps = False

    def __init__(self, seconds_per_image: float) -> None:
        self.seconds_per_image = seconds_per_image

    def __call__(self, pixels: Any, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        time.sleep(self.seconds_per_image * len(image_ids))
        return super().__call__(pixels, image_ids)


@dataclass(frozen=True)
class Sample:
    """Bytes at one moment."""

    processes: int
    store: int
    spilled: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3_000)
    parser.add_argument("--slower", type=float, default=10.0, help="than decoding")
    parser.add_argument("--side", type=int, default=288, help="of the decoded squares, in pixels")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run(Path(given.child), given.side, given.slower / DECODED_PER_SECOND)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "photos", ROOT / "tests" / "photos", given.photos, 640)
        env = dict(os.environ) | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        with cluster(env, folder, int(STORE_SHARE * MACHINE_BYTES)) as made:
            node = made.start("only", num_cpus=2)
            command = [
                sys.executable,
                __file__,
                "--child",
                name,
                "--slower",
                str(given.slower),
                "--side",
                str(given.side),
            ]
            job = Session(command, env=env | {"RAY_ADDRESS": made.address}, log=folder / "job.log", cwd=ROOT)
            try:
                samples = watch(job, node, made.folder)
                print((folder / "job.log").read_text().strip(), flush=True)
                code = job.wait(60)
            finally:
                job.end()
    if code:
        return 1
    return report(samples)


def run(folder: Path, side: int, seconds_per_image: float) -> None:
    """The job, in a process of its own."""
    job = BatchJob(
        kind="slow",
        verb="captioned",
        folders=("captions",),
        identity={"model": "none"},
        transform=EncoderSquare(Preprocessing(size=side)),
        factory=lambda plan: SlowFactory(seconds_per_image),
        compact=True,
    )
    settings = BatchSettings(input=str(folder / "photos"), output=str(folder / "out"), work=WorkSettings(num_actors=1))
    outcome = run_batch_job(job, settings)
    print(json.dumps({"images": outcome.images, "seconds": round(outcome.seconds)}))


def watch(job: Session, node: Session, ray_folder: Path) -> list[Sample]:
    """Sample once a second until the job ends."""
    samples: list[Sample] = []
    before = shared_bytes()
    while job.is_running:
        pids = [*job.titles(), *node.titles()]
        samples.append(Sample(sum(map(private_bytes, pids)), shared_bytes() - before, spilled_bytes(ray_folder)))
        time.sleep(1)
    return samples


def private_bytes(pid: int) -> int:
    """Memory of a process that is not shared memory, shared pages in proportion."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return (values["Pss:"] - values.get("Pss_Shmem:", 0)) * 1024


def spilled_bytes(ray_folder: Path) -> int:
    """Size of the files to which Ray has moved objects for which its store had no room."""
    sizes = []
    for folder in ray_folder.glob("**/ray_spilled_objects*"):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):  # Ray deletes them when they are needed no more
                sizes.append(path.stat().st_size)
    return sum(sizes)


def shared_bytes() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def report(samples: Sequence[Sample]) -> int:
    """Print the largest figures of the first and the second half of the run."""
    middle = len(samples) // 2
    grown = False
    for name in ("processes", "store", "spilled"):
        first, second = (max(getattr(s, name) for s in half) / GIB for half in (samples[:middle], samples[middle:]))
        print(f"{name}: at most {first:.2f} GiB in the first half of the run, {second:.2f} GiB in the second")
        grown = grown or second > 1.1 * first + 0.05
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
