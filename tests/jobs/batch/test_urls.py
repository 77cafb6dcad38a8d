"""Lists of URLs, as crawls make them: what came is committed, and whoever does not answer ends in rows."""

from __future__ import annotations

import json
import re

import pandas
import pytest
from stubs import run_stub

from jobs.cli.errors import JobIncomplete
from tests.flaky import flaky_server


@pytest.fixture(autouse=True)
def _quick(monkeypatch, run_in_process):
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)


def table(output):
    return pandas.read_parquet(output / "captions").sort_values("image_id").reset_index(drop=True)


def assert_every_image_once(output, count):
    assert table(output).image_id.tolist() == list(range(count))


def test_a_storage_that_fails_in_the_middle_keeps_what_came(tmp_path, make_images):
    """Nothing says that the network is there, so the job stops; what it wrote and what it says are true."""
    source, output = make_images(24), tmp_path / "out"
    with flaky_server(source.parent) as server:
        server.faults = {f"{i:04d}.jpg": (503, 10**6) for i in (3, 12, 13, *range(16, 24))}
        server.once_only = True
        with pytest.raises(JobIncomplete) as stopped:
            run_stub(f"{server.url}/in/", output, faults={"transport_retries": 0})
        assert re.match(r"11 images are not done: .*503.*the same command", str(stopped.value))
        rows = table(output)
        assert rows.error.dropna().str.startswith("Deferred: HttpError: ").tolist() == [True] * 3
        record = json.loads((output / "run.json").read_text())
        assert (record["state"], record["images"]) == ("incomplete", {"planned": 24, "captioned": 13, "failed": 0})

        server.faults, server.once_only = {"0003.jpg": (503, 10**6)}, False
        # Nothing is asked of this run but what was left, and the image that an earlier run fetched says who answers.
        outcome = run_stub(f"{server.url}/in/", output)
    assert (outcome.images, outcome.counts) == (11, (23, 1))
    assert_every_image_once(output, 24)


def test_dead_hosts_become_rows_and_the_job_is_done(tmp_path, make_images):
    source, output = make_images(40), tmp_path / "out"
    with flaky_server(source.parent) as server:
        dead = ["http://127.0.0.1:9/{}.jpg", "http://no-such-host.invalid/{}.jpg"]
        urls = [dead[i // 5 % 2].format(i) if i % 5 == 0 else f"{server.url}/in/{i:04d}.jpg" for i in range(40)]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        outcome = run_stub(tmp_path / "list.txt", output)
    assert outcome.counts == (32, 8)
    rows = table(output)
    assert rows[rows.error.notna()].error.str.startswith("HostUnreachable: ").tolist() == [True] * 8
    assert rows.image_id[rows.error.notna()].tolist() == list(range(0, 40, 5))
