"""How much of a machine the caption job turns into captions: beside a bare loop and the documentation's script, from
disk and from an object store, with beam search and without, and with ten photos.

    python tests/benchmarks/caption_throughput.py                                        all, half an hour on 2 cores
    python tests/benchmarks/caption_throughput.py --cases job script --images 500 --repeats 1

All sides run in processes of their own, in turn, so that whatever else the machine does meets them alike; medians are
compared. The numbers mean nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.photo_mill import make_images
from faults.servers import OWNER, ObjectStore, object_store

from captionlib.images.transforms import EncoderSquare
from jobs.benchmarking.measure import time_job
from jobs.cluster.resources import num_cpus

CASES = ("job", "script", "s3", "beam", "batch", "start")
GREEDY, BEAM = ("--search.method", "greedy"), ("--search.method", "beam", "--search.beam-width", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--photos", type=Path, default=ROOT / "tests" / "photos", help="photos to make the images from")
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--script-images", type=int, help="for the documentation's script, which is slow; default: all")
    parser.add_argument("--side", type=int, default=640, help="longer side of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{num_cpus()} CPUs, load {os.getloadavg()[0]:.1f}, {arguments.images} images of {arguments.side} px")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments)
        for repeat in range(arguments.repeats):
            for case in arguments.cases:
                getattr(bench, case)(repeat)
        bench.close()
        bench.print_summary()


class Bench:
    """Runs the sides, and keeps what each took."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.num_images = folder, arguments.images
        self.images = folder / "images"
        make_images(self.images, arguments.photos, arguments.images, arguments.side)
        self.few = self._subset("few", 10)
        self.for_script = self._subset("for_script", arguments.script_images or arguments.images)
        self.found: dict[str, list[float]] = defaultdict(list)
        self.store: ObjectStore | None = None
        self._store_context = object_store(folder / "store")

    # --- the cases, each with the sides that are compared ---

    def job(self, repeat: int) -> None:
        """The job beside a bare loop over the same model and search."""
        self._loop()
        self._job("job", str(self.images), repeat, *GREEDY)

    def script(self, repeat: int) -> None:
        """The documentation's script. It is slow, so it may have fewer images; ten of them tell its start apart."""
        script = str(HERE / "documentation_script.py")
        start, _ = self._run([script, str(self.few), str(self.folder / f"script-few{repeat}")])
        seconds, _ = self._run([script, str(self.for_script), str(self.folder / f"script{repeat}")])
        more = len(list(self.for_script.iterdir())) - len(list(self.few.iterdir()))
        self._note("script warm", more / (seconds - start))
        self._note("script whole", self.num_images / (start + self.num_images * (seconds - start) / more))

    def s3(self, repeat: int) -> None:
        """Images and output on an object store of this machine, which takes its own share of the CPUs."""
        store = self._running_store()
        os.environ |= OWNER.env(store.url)
        before, started = _cpu_seconds(store), time.monotonic()
        self._job("s3", "s3://photos/all", repeat, *GREEDY, output=f"s3://captions/{repeat}")
        self._note(
            "s3 server's share of the CPUs", (_cpu_seconds(store) - before) / (time.monotonic() - started) / num_cpus()
        )

    def beam(self, repeat: int) -> None:
        """Beam search of width 3."""
        self._job("beam", str(self.images), repeat, *BEAM)

    def batch(self, repeat: int) -> None:
        """Beam search in batches of 32, and image by image."""
        from captionlib.captioners.checkpoint import LoadedCheckpoint
        from captionlib.captioners.predictor import Predictor
        from captionlib.config import SearchConfig
        from jobs.benchmarking.measure import load, stage_seconds
        from jobs.inputs.listing import list_files

        predictor = Predictor.from_checkpoint(num_threads=num_cpus())
        pixels = load(list(list_files(str(self.images)))[:128], EncoderSquare(predictor.preprocessing)).pixels
        beam = SearchConfig(method="beam", beam_width=3)
        for name, size in (("batches of 32", 32), ("one by one", 1)):
            encoder, search = stage_seconds(LoadedCheckpoint(predictor, beam, size).stages(), pixels, size)
            self._note(f"search, {name}", len(pixels) / search)
            self._note(f"encoder and search, {name}", len(pixels) / (encoder + search))

    def start(self, repeat: int) -> None:
        """Ten photos, from the command to the prompt."""
        done = time_job(str(self.few), str(self.folder / f"few{repeat}"))
        self._note("10 photos: seconds", done.seconds)
        for phase, seconds in done.run.get("seconds_by_phase", {}).items():
            self._note(f"10 photos: seconds, {phase}", seconds)
        self._note("10 photos: seconds, process and its imports", done.seconds - done.run["seconds"])
        seconds, _ = self._run([str(HERE / "empty_job.py")])
        self._note("an empty job of Ray Data: seconds", seconds)

    # --- how ---

    def close(self) -> None:
        if self.store is not None:
            self._store_context.__exit__(None, None, None)

    def print_summary(self) -> None:
        median = {name: statistics.median(values) for name, values in self.found.items()}
        print("\nmedians:")
        for name, value in median.items():
            print(f"  {name:45} {value:9.2f}")
        print("\nratios:")
        for text, over, under, target in (
            ("job ÷ bare loop, warm", "job warm", "loop warm", "≥ 0.85"),
            ("job's time ÷ bare loop's, whole", "loop whole", "job whole", "≤ 1.5"),
            ("job ÷ documentation's script, warm", "job warm", "script warm", "≥ 6"),
            ("job ÷ documentation's script, whole", "job whole", "script whole", "≥ 6"),
            ("S3 ÷ disk, warm", "s3 warm", "job warm", "≥ 0.8"),
            ("greedy ÷ beam 3, warm", "job warm", "beam warm", "≤ 1.5"),
            ("beam 3 in batches ÷ one by one", "search, batches of 32", "search, one by one", "≥ 4"),
        ):
            if over in median and under in median:
                print(f"  {text:45} {median[over] / median[under]:9.2f}  aim {target}")

    def _note(self, name: str, value: float) -> None:
        self.found[name].append(value)
        print(f"  {name:45} {value:9.2f}", flush=True)

    def _loop(self) -> None:
        seconds, printed = self._run([str(HERE / "bare_loop.py"), str(self.images)])
        self._note("loop warm", self.num_images / float(json.loads(printed)))
        self._note("loop whole", self.num_images / seconds)

    def _job(self, name: str, source: str, repeat: int, *flags: str, output: str = "") -> None:
        done = time_job(
            source, output or str(self.folder / f"{name}{repeat}"), "--no-report", "--address", "local", *flags
        )
        if done.images_per_second is not None:
            self._note(f"{name} warm", done.images_per_second)
        self._note(f"{name} whole", self.num_images / done.seconds)

    def _run(self, command: list[str]) -> tuple[float, str]:
        started = time.monotonic()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return time.monotonic() - started, done.stdout

    def _subset(self, name: str, count: int) -> Path:
        folder = self.folder / name
        folder.mkdir()
        for path in sorted(self.images.iterdir())[:count]:
            os.link(path, folder / path.name)
        return folder

    def _running_store(self) -> ObjectStore:
        if self.store is None:
            self.store = self._store_context.__enter__()
            client = self.store.client()

            def put(path: Path) -> None:
                client.put_object(Bucket="photos", Key=f"all/{path.name}", Body=path.read_bytes())

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(put, self.images.iterdir()))
        return self.store


def _cpu_seconds(store: ObjectStore) -> float:
    """That the server's processes have used so far."""
    assert store.session is not None
    ticks = 0
    for pid in store.session.titles():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in user and in kernel mode
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
