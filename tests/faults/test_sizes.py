"""Machines of every size: the job runs, is killed, and resumes on one CPU, on two, on four, and on a running Ray."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .cluster import cluster
from .harness import PATIENCE, Place, run_job, start_job
from .inputs import photo
from .processes import kill, wait_until

pytestmark = pytest.mark.slow

NUM_PHOTOS = 240


@pytest.mark.parametrize("size", ["1", "2", "4", "auto"])
def test_killed_and_resumed(size: str, model: Path, place: Place, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(NUM_PHOTOS):
        (source / f"{number:04d}.jpg").write_bytes(photo(number))
    flags = ["--images-per-chunk", "20", "--no-report"]
    env: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if size == "auto":
            made = stack.enter_context(cluster(place.env({}), place.folder))
            made.start("only", num_cpus=2)
            # Ray looks there first; by itself, "auto" might find a cluster of somebody else on this machine.
            env = {"RAY_ADDRESS": made.address, "RAY_AUTH_MODE": "disabled"}
            flags += ["--address", "auto"]
        else:
            flags += ["--num-cpus", size]
        job = start_job(place, env, str(source), str(output), model, *flags, name=f"size-{size}")
        try:
            chunks = output / "captions"
            assert wait_until(lambda: any(chunks.glob("*.parquet")) or not job.is_running, PATIENCE)
            assert kill(job.pid), job.log.read_text()
            job.wait(60)
        finally:
            job.end()
        done = {path.name: path.stat().st_mtime_ns for path in chunks.glob("captions-*.parquet")}
        assert 0 < len(done) < NUM_PHOTOS / 20
        flags += ["--jsonl"]
        code, log = run_job(place, env, str(source), str(output), model, *flags, name=f"size-{size}-again")
    assert code == 0, log
    print(f"\n{size}: {len(done)} of {NUM_PHOTOS // 20} chunks when it was killed; then {log.splitlines()[0]}")
    assert f"{NUM_PHOTOS - 20 * len(done)} images are processed" in log
    rows = pq.read_table(output / "captions").sort_by("image_id")
    assert rows.column("image_id").to_pylist() == list(range(NUM_PHOTOS))
    assert len((output / "captions.jsonl").read_text().splitlines()) == NUM_PHOTOS
