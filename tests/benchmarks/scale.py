"""What a batch job costs besides reading, decoding and the model, from a thousand images to ten million.

    python tests/benchmarks/scale.py                              1,000 to 1,000,000 images, about 15 minutes on 2 cores
    python tests/benchmarks/scale.py --images 10000000 --write    also keep the rows in tests/benchmarks/SCALE.md

Listing, manifest, Ray Data, chunk files, tracking and compaction are the job's own. The stages are stubs: nothing is
read, each image is one grey pixel, its caption is two words, and one image in a hundred has an error. Five cases for
each number of images, each in a process of its own:

    first        the first run
    nothing      the same command again
    resume       the first run was killed when 1% was left
    new          the list is 1% longer
    errors       --retry-errors, with 1% errors

The columns: wall-clock seconds from the command's start, the driver's peak memory, the growth of /dev/shm (Ray's object
store), and the number of files in the output at its largest and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.config import Preprocessing
from captionlib.images.transforms import EncoderSquare
from captionlib.storage.folder import Folder
from jobs.batch import rounds
from jobs.batch.chunk_images import DecodedImage
from jobs.batch.decode_stage import DecodeStage
from jobs.batch.decoding_deadline import DecodingDeadline
from jobs.batch.job import BatchJob
from jobs.batch.manifest import Manifest
from jobs.batch.model_stage import Processor
from jobs.batch.rounds import LARGEST_DEFAULT_CHUNK
from jobs.batch.run import run_batch_job
from jobs.batch.settings import BatchSettings, FaultSettings, WorkSettings
from jobs.inputs.listing import ImageRef
from jobs.inputs.reader import image_refs
from jobs.inputs.sources import Sources
from jobs.outputs import run_record, schemas
from jobs.outputs.chunk_files import ROWS_PER_FILE, ChunkFiles
from jobs.outputs.id_ranges import IdRange, cut

CASES = ("first", "nothing", "resume", "new", "errors")
ROWS_PER_GROUP = 100_000
TABLE = Path(__file__).with_name("SCALE.md")
PIXEL = np.full((1, 1, 3), 127, np.uint8)


class StubStage(DecodeStage):
    """Reads nothing. Images whose number ends in 99 have an error unless `ERRORS` says otherwise."""

    def _read_all(self, places: list[ImageRef], deadline: DecodingDeadline, *, is_last: bool) -> list[DecodedImage]:
        bad = DecodedImage(error="UnknownFormat: a stub")
        good = DecodedImage(PIXEL, 640, 480)
        return [bad if place.path.endswith("99.jpg") and is_bad_time(place) else good for place in places]


def is_bad_time(place: ImageRef) -> bool:
    """Whether an image has an error now: not in a list whose folder has a file `mended`."""
    return not os.path.exists(os.environ["SCALE_MENDED"])


class StubFactory:
    """Makes models that give all images the same caption."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        return {"captions": schemas.CAPTIONS}

    def load(self) -> Processor:
        return StubModel()


class StubModel:
    """The same caption for all images."""

    overlaps = True

    def __call__(self, pixels: Any, image_ids: Sequence[int]) -> Mapping[str, Mapping[str, pa.Array]]:
        count = len(image_ids)
        columns = {
            "caption": ["a stub"] * count,
            "log_prob": [-1.0] * count,
            "num_tokens": [2] * count,
            "finish_reason": ["end"] * count,
            "confidence": [0.5] * count,
            "low_confidence": [False] * count,
            "captions": [[{"text": "a stub", "log_prob": -1.0}]] * count,
            "error": [None] * count,
        }
        return {"captions": {name: pa.array(v, schemas.CAPTIONS.field(name).type) for name, v in columns.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--folder", type=Path, help="for lists and outputs, deleted afterwards")
    parser.add_argument("--write", action="store_true", help=f"add the rows to {TABLE.name}")
    parser.add_argument(
        "--without-first", action="store_true", help="write the first run's output directly, in minutes"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "output":
        write_output(given.folder)
        return 0
    if given.child:
        print(json.dumps(run_case(given.child, given.folder)))
        return 0
    print(f"{HEAD}\n{'| --- ' * 8}|", flush=True)
    for number in given.images:
        with tempfile.TemporaryDirectory(dir=given.folder, prefix="scale-") as name:
            for line in measure(Path(name), number, given.cases, given.without_first):
                print(line, flush=True)
                if given.write:
                    keep(line)
    return 0


# --- the cases --------------------------------------------------------------------------------------------------

HEAD = "| images | case | seconds | µs an image | driver MiB | /dev/shm MiB | files, largest | files, end |"


def measure(folder: Path, images: int, cases: Sequence[str], without_first: bool) -> Iterator[str]:
    """Run the cases one after the other and yield a row of the table for each."""
    write_list(folder / "list.parquet", images)
    if without_first:
        child = [sys.executable, __file__, "--child", "output", "--folder", str(folder)]
        subprocess.run(child, check=True, env=os.environ | {"SCALE_MENDED": ""})
    for case in CASES:
        if case not in cases and (case != "first" or without_first):
            continue
        prepare(folder, images, case)
        child = [sys.executable, __file__, "--child", case, "--folder", str(folder)]
        env = os.environ | {"SCALE_MENDED": str(folder / "mended"), "RAY_USAGE_STATS_ENABLED": "0"}
        largest = Largest(folder / "out")
        shared = shared_bytes()
        began = time.monotonic()
        with largest:
            done = subprocess.run(child, env=env, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"{case} of {images:,} images failed")
        figures = json.loads(done.stdout.splitlines()[-1])
        print(f"{images:,} {case}: seconds by phase {figures['phases']}", file=sys.stderr, flush=True)
        worked = figures["images"] or images
        yield (
            f"| {images:,} | {case} | {seconds:.1f} | {seconds / worked * 1e6:,.0f} | {figures['driver_mib']:,.0f} | "
            f"{(largest.shared - shared) / 2**20:,.0f} | {largest.files:,} | {count_files(folder / 'out'):,} |"
        )


def write_list(path: Path, images: int, first: int = 0) -> None:
    """Write a Parquet list of paths."""
    with pq.ParquetWriter(path, pa.schema([("path", pa.string())])) as writer:
        for start in range(first, first + images, ROWS_PER_GROUP):
            ids = range(start, min(start + ROWS_PER_GROUP, first + images))
            writer.write_table(pa.table({"path": [f"/nowhere/photos/{i % 1000:03d}/{i:012d}.jpg" for i in ids]}))


def prepare(folder: Path, images: int, case: str) -> None:
    """Bring about the state that a case begins with."""
    if case == "resume":
        interrupt(ChunkFiles(Folder.of(str(folder / "out" / "captions")), "captions"), images)
    elif case == "new":
        write_list(folder / "more.parquet", max(1, images // 100), images)
    elif case == "errors":
        (folder / "mended").touch()


def interrupt(files: ChunkFiles, images: int) -> None:
    """Make a complete output one whose run was killed when 1% was left: chunks that are not merged yet."""
    last = images * 99 // 100 - 1
    for ids in files.finished():
        rows = files.read(ids)
        left = list(cut([IdRange(ids.first, min(ids.last, last))], LARGEST_DEFAULT_CHUNK)) if ids.first <= last else []
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda c: files.write(c, rows.slice(c.first - ids.first, c.size)), left))  # noqa: B023
        if [ids] != left:
            Path(f"{files.folder.url}/captions-{ids.first:012d}-{ids.last:012d}.parquet").unlink()


def write_output(folder: Path) -> None:
    """Write the output of a first run without running it."""
    output = Folder.of(str(folder / "out"))
    manifest = Manifest.open(output / "manifest").append(Sources((str(folder / "list.parquet"),)).list())
    files, job = ChunkFiles(output / "captions", "captions"), make_job()
    for ids in cut([IdRange(0, manifest.num_images - 1)], ROWS_PER_FILE):
        places = image_refs(manifest.read(ids))
        columns = dict(StubModel()([], range(ids.size))["captions"]) | {
            "image_id": pa.array(range(ids.first, ids.last + 1), pa.int64()),
            "path": pa.array([place.path for place in places]),
            "width": pa.array([640] * ids.size, pa.int32()),
            "height": pa.array([480] * ids.size, pa.int32()),
            "error": pa.array(["UnknownFormat: a stub" if place.path.endswith("99.jpg") else None for place in places]),
        }
        files.write(ids, pa.table([columns[name] for name in schemas.CAPTIONS.names], schema=schemas.CAPTIONS))
    run_record.write_record(output, {"job": job.kind, "identity": dict(job.identity), "state": "complete"})


def make_job() -> BatchJob:
    """The job with stub stages."""
    return BatchJob(
        kind="stub",
        verb="captioned",
        folders=("captions",),
        identity={"model": "none"},
        transform=EncoderSquare(Preprocessing(size=1)),
        factory=lambda plan: StubFactory(),
        compact=True,
    )


def run_case(case: str, folder: Path) -> dict[str, Any]:
    """One run, in the process that is measured."""
    setattr(rounds, "DecodeStage", StubStage)  # noqa: B010  it is not among the names that the module exports
    settings = BatchSettings(
        input=str(folder / "list.parquet"),
        also=(str(folder / "more.parquet"),) if (folder / "more.parquet").exists() else (),
        output=str(folder / "out"),
        retry_errors=case == "errors",
        quiet=True,
        work=WorkSettings(address="local"),
        faults=FaultSettings(max_error_share=1.0),
    )
    outcome = run_batch_job(make_job(), settings)
    assert outcome.counts.done + outcome.counts.failed == outcome.manifest.num_images
    return {
        "images": outcome.images,
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "phases": outcome.run.get("seconds_by_phase"),
    }


# --- measuring --------------------------------------------------------------------------------------------------


class Largest:
    """Samples the number of files of an output and the use of /dev/shm."""

    def __init__(self, output: Path) -> None:
        self.output, self.files, self.shared = output, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(2.0):
            self.files = max(self.files, count_files(self.output))
            self.shared = max(self.shared, shared_bytes())


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def shared_bytes() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def keep(line: str) -> None:
    """Replace the row of the same number and case in the table, or add it to the end of the table."""
    lines = TABLE.read_text().splitlines()
    rows = [number for number, text in enumerate(lines) if text.startswith("| ")]
    same = [number for number in rows if lines[number].split("|")[1:3] == line.split("|")[1:3]]
    if same:
        lines[same[0]] = line
    else:
        lines.insert(rows[-1] + 1, line)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
