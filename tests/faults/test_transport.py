"""A bad network, and a store that is away: rows are never made up, and nothing is lost for good."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from .harness import PATIENCE, SEED, Output, Place, assert_same_captions, run_job, start_job
from .inputs import upload_photos
from .processes import Session, wait_until
from .proxy import FaultProxy, Faults, fault_proxy
from .servers import OWNER, ObjectStore, object_store

pytestmark = pytest.mark.slow

QUICKLY = ("--transport-retries", "1", "--transport-pause", "1")


@pytest.fixture
def proxy(store: ObjectStore) -> Iterator[FaultProxy]:
    with fault_proxy(store.address, SEED) as made:
        yield made


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("busy", Faults(slow_down=0.2)),
        ("broken", Faults(reset=0.05, lost_answer=0.05, cut=0.1)),
        (
            "everything",
            Faults(slow_down=0.1, reset=0.05, lost_answer=0.02, cut=0.05, stall=0.005, latency_seconds=0.02),
        ),
    ],
)
def test_a_bad_network(
    name: str, faults: Faults, store: ObjectStore, proxy: FaultProxy, photos: str, undisturbed: list[dict[str, Any]],
    model: Path, place: Place,
) -> None:  # fmt: skip
    """Reads, writes and listings all meet the faults; the captions don't show it, and no image is called broken."""
    output = Output(store.client(), "captions", f"network-{name}")
    proxy.faults = faults
    began = time.monotonic()
    code, log = run_job(place, OWNER.env(proxy.url), photos, output.url, model, "--no-report", name=name)
    seconds, num_requests = time.monotonic() - began, sum(proxy.requests.values())
    print(f"\n{name}: exit code {code} after {seconds:.0f} s, {num_requests:,} requests, {dict(proxy.done)}")
    assert code == 0, log
    assert "Traceback" not in log
    assert sum(proxy.done.values()) > 0.05 * num_requests
    assert_same_captions(output.rows(), undisturbed)


def test_the_store_is_restarted_while_the_job_runs(tmp_path: Path, model: Path, place: Place) -> None:
    """Killed, away for some seconds, and back: the job waits for it."""
    with object_store(tmp_path / "store") as store:
        output, job = _start_and_wait_for_rows(store, place, model, "restarted")
        try:
            store.kill()
            time.sleep(20)
            store.start()
            code = job.wait(PATIENCE)
        finally:
            job.end()
        assert code == 0, job.log.read_text()
        _assert_complete(output)


def test_the_store_stays_away(tmp_path: Path, model: Path, place: Place) -> None:
    """The job gives up with a sentence; what was finished is there, and nothing else; then the next run goes on."""
    with object_store(tmp_path / "store") as store:
        output, job = _start_and_wait_for_rows(store, place, model, "away", *QUICKLY)
        try:
            store.kill()
            began = time.monotonic()
            code = job.wait(PATIENCE)
        finally:
            job.end()
        log = job.log.read_text()
        print(f"\naway: exit code {code}, {time.monotonic() - began:.0f} s after the store went:\n{log}")
        assert code == 1
        assert "Traceback" not in log
        last = log.strip().splitlines()[-1]
        assert last.startswith("python -m jobs.caption: ")
        assert "same command" in last
        store.start()
        errors = [row["error"].partition(":")[0] for row in output.rows() if row["error"]]
        # A chunk of which some images came before the store went away is there; the others are left for the next run.
        assert set(errors) <= {"TruncatedImage", "EmptyFile", "Deferred"}, "a store that is away is no image's fault"
        assert output.num_rows() - errors.count("Deferred") < FEW
        code, log = run_job(
            place, OWNER.env(store.url), "s3://photos/few", output.url, model, "--no-report", name="away-again"
        )
        assert code == 0, log
        _assert_complete(output)


def test_only_the_input_goes_away(tmp_path: Path, model: Path, place: Place) -> None:
    """The output is a local folder, so the record can be written: it says that the run is incomplete, and why."""
    local = tmp_path / "out"
    with object_store(tmp_path / "store") as store, fault_proxy(store.address, SEED) as proxy:
        upload_photos(store.client(), "photos", "few", FEW)
        proxy.faults = Faults(latency_seconds=1)  # else all photos are read before the first have captions
        job = start_job(
            place, OWNER.env(proxy.url), "s3://photos/few", str(local), model, *SMALL_CHUNKS, *QUICKLY, name="input"
        )
        try:
            assert wait_until(lambda: any(local.glob("captions/*.parquet")) or not job.is_running, PATIENCE)
            proxy.faults = Faults(reset=1)
            code = job.wait(PATIENCE)
        finally:
            job.end()
        log = job.log.read_text()
        assert code == 1, log
        assert "Traceback" not in log
        assert '"state": "incomplete"' in (local / "run.json").read_text()
        proxy.faults = Faults()
        code, log = run_job(place, OWNER.env(proxy.url), "s3://photos/few", str(local), model, name="input-again")
        assert code == 0, log
        assert sorted(pq.read_table(local / "captions").column("image_id").to_pylist()) == list(range(FEW))
        assert '"state": "complete"' in (local / "run.json").read_text()
    shutil.rmtree(local)


def test_no_store_from_the_start(store: ObjectStore, model: Path, place: Place) -> None:
    env = OWNER.env("http://127.0.0.1:9")
    code, log = run_job(place, env, "s3://photos/few", "s3://captions/none", model, name="none")
    assert code == 2, log
    assert "Traceback" not in log
    assert "http://127.0.0.1:9" in log


FEW = 400
SMALL_CHUNKS = ("--images-per-chunk", "20", "--no-report")


def _start_and_wait_for_rows(
    store: ObjectStore, place: Place, model: Path, name: str, *flags: str
) -> tuple[Output, Session]:
    """A job over a few photos that has finished some of them."""
    upload_photos(store.client(), "photos", "few", FEW)
    output = Output(store.client(), "captions", name)
    job = start_job(place, OWNER.env(store.url), "s3://photos/few", output.url, model, *SMALL_CHUNKS, *flags, name=name)
    assert wait_until(lambda: len(output.chunks()) > 0 or not job.is_running, PATIENCE)
    assert job.is_running, job.log.read_text()
    return output, job


def _assert_complete(output: Output) -> None:
    rows = output.rows()
    assert [row["image_id"] for row in rows] == list(range(FEW))
    assert len({row["path"] for row in rows}) == FEW
    assert {row["error"].partition(":")[0] for row in rows if row["error"]} == {"TruncatedImage", "EmptyFile"}
