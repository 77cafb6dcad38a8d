"""Whole jobs on a small Ray, with a model that is a stub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from stubs import PHOTOS, StubFactory, run_stub

from jobs.cli.errors import JobIncomplete
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange
from tests.flaky import flaky_server

pytestmark = pytest.mark.usefixtures("ray_of_two_cpus")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)


def table(output):
    return pandas.read_parquet(Path(output) / "captions").sort_values("image_id").reset_index(drop=True)


def chunk_files(output):
    return {path.name: path.stat().st_mtime_ns for path in Path(output, "captions").glob("captions-*.parquet")}


def assert_every_image_once(output, count):
    assert table(output).image_id.tolist() == list(range(count))


def test_every_image_is_captioned_or_says_why_not(tmp_path, make_images):
    source = make_images(20)
    (source / "empty.jpg").touch()
    (source / "text.png").write_text("<html>404</html>")
    (source / "cut.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:9_000])
    (source / "broken.jpg").symlink_to("/nowhere")
    (source / 'it\'s a "näme"\nwith 写真 %20.jpg').write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (source / "more").mkdir()
    (source / "more" / "dog.JPG").write_bytes((PHOTOS / "coffee.jpg").read_bytes())

    outcome = run_stub(source, tmp_path / "out")

    assert outcome.counts == (22, 5)
    rows = table(tmp_path / "out")
    assert_every_image_once(tmp_path / "out", 27)
    failed = rows[rows.error.notna()]
    kinds = {os.path.basename(row.path): row.error.partition(":")[0] for row in failed.itertuples()}
    assert kinds == {"empty.jpg": "EmptyFile", "text.png": "NotAnImage", "cut.jpg": "TruncatedImage",
                     "broken.jpg": "NotFound", "caf\ufffd.jpg": "NotFound"}  # fmt: skip
    assert failed.caption.isna().all()
    good = rows[rows.error.isna()].set_index("path")
    assert len(set(good.caption)) == 22
    for i in range(20):  # each caption is the one of its own image
        colour = [int(word) for word in good.caption[str(source / f"{i:04d}.jpg")].split()[1:]]
        assert colour == pytest.approx([i * 37 % 256, i * 91 % 256, i * 151 % 256], abs=4)
    named = good.loc[str(source / 'it\'s a "näme"\nwith 写真 %20.jpg')]
    assert (named.width, named.height) == (451, 300)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "complete"
    assert record["images"] == {"planned": 27, "captioned": 22, "failed": 5}
    (run,) = record["runs"]
    assert list(run["seconds_by_phase"]) == ["listing", "ray", "first images", "other images", "end"]
    assert sum(run["seconds_by_phase"].values()) == pytest.approx(run["seconds"], abs=0.3)  # nothing is left out
    assert len(chunk_files(tmp_path / "out")) == 1  # small files were merged


def test_a_finished_set_is_not_touched_and_new_images_are_added(tmp_path, make_images):
    source, output = make_images(10), tmp_path / "out"
    run_stub(source, output)
    before = chunk_files(output)
    first = table(output)

    assert run_stub(source, output).run == {}
    assert chunk_files(output) == before

    make_images(3, start=50)
    outcome = run_stub(source, output)
    assert (outcome.images, outcome.counts) == (3, (13, 0))
    pandas.testing.assert_frame_equal(table(output).iloc[:10], first)
    assert_every_image_once(output, 13)


def test_missing_parts_are_done_and_only_those(tmp_path, make_images):
    source, output = make_images(30), tmp_path / "out"
    (source / "empty.jpg").touch()
    run_stub(source, output)
    whole = table(output)
    # As a crash would have left it: chunks of different sizes, one of them half-written.
    from captionlib.storage.folder import Folder
    from jobs.outputs.chunk_files import ChunkFiles
    from jobs.outputs.id_ranges import IdRange

    files = ChunkFiles(Folder.of(str(output / "captions")), "captions")
    rows = files.read(IdRange(0, 30))
    files.delete()
    files.write(IdRange(0, 7), rows.slice(0, 8))
    files.write(IdRange(12, 19), rows.slice(12, 8))
    (output / "captions" / ".captions-000000000020-000000000027.parquet.1.tmp").write_bytes(b"half")

    outcome = run_stub(source, output)

    assert outcome.images == 15
    pandas.testing.assert_frame_equal(table(output), whole)
    assert not [name for name in os.listdir(output / "captions") if name.startswith(".")]


def test_rows_that_another_job_wrote_meanwhile_are_not_twice_in_the_output(tmp_path, make_images, monkeypatch):
    """In a bucket, two jobs may work on one output, and the other writes its file after this one has merged all."""
    compact = ChunkFiles.compact

    def compact_and_be_overtaken(files: ChunkFiles) -> None:
        compact(files)
        (whole,) = files.finished()
        files.write(IdRange(4, 7), files.read(whole).slice(4, 4))

    monkeypatch.setattr(ChunkFiles, "compact", compact_and_be_overtaken)
    assert run_stub(make_images(10), tmp_path / "out").counts == (10, 0)
    assert_every_image_once(tmp_path / "out", 10)


def test_other_settings_are_refused_and_overwrite_starts_anew(tmp_path, make_images):
    source, output = make_images(3), tmp_path / "out"
    run_stub(source, output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="model is stub 1 there and stub 2 now.*--overwrite"):
        run_stub(source, output, StubFactory(version=2))
    (source / "0000.jpg").unlink()
    outcome = run_stub(source, output, StubFactory(version=2), overwrite=True)
    assert outcome.counts == (2, 0)
    assert_every_image_once(output, 2)
    assert (output / "notes.txt").exists()


def test_failed_images_are_tried_again_on_request(tmp_path, make_images):
    source, output = make_images(12), tmp_path / "out"
    for name in ("aa.jpg", "zz.jpg"):
        (source / name).touch()
    run_stub(source, output)
    (source / "aa.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    before = table(output)

    outcome = run_stub(source, output, retry_errors=True)

    assert (outcome.images, outcome.counts) == (2, (13, 1))
    after = table(output)
    changed = after[after.caption.fillna("") != before.caption.fillna("")]
    assert [os.path.basename(path) for path in changed.path] == ["aa.jpg"]
    assert_every_image_once(output, 14)


def test_passing_transport_faults_delay_and_lasting_ones_stop(tmp_path, make_images):
    source, output = make_images(24), tmp_path / "out"
    with flaky_server(source.parent) as server:
        url = f"{server.url}/in/"
        server.faults["0003.jpg"] = (503, 4)
        server.faults["0005.jpg"] = ("cut", 2)
        server.faults["0006.jpg"] = (404, 10**6)
        server.faults["0012.jpg"] = (503, 10**6)
        outcome = run_stub(url, output, faults={"transport_retries": 0})
        assert outcome.counts == (22, 2)
        rows = table(output)
        assert rows[rows.error.notna()].error.str.partition(":")[0].tolist() == ["NotFound", "HttpError"]

        server.faults.clear()
        outcome = run_stub(url, output, retry_errors=True)
    assert (outcome.images, outcome.counts) == (2, (24, 0))
    assert_every_image_once(output, 24)


def test_a_server_that_is_gone_stops_the_job(tmp_path, make_images):
    source, output = make_images(24), tmp_path / "out"
    with flaky_server(source.parent) as server:
        server.everything = 503
        with pytest.raises(JobIncomplete, match="24 images are not done: .*503"):
            run_stub(f"{server.url}/in/", output, faults={"transport_retries": 0})


def test_too_many_bad_images_stop_the_job(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(1_200):
        (source / f"{i:04d}.jpg").write_bytes(b"not an image")
    with pytest.raises(JobIncomplete, match="images failed, more than --max-error-share"):
        run_stub(source, tmp_path / "out", work={"images_per_chunk": 200})
    outcome = run_stub(source, tmp_path / "out", work={"images_per_chunk": 200}, faults={"max_error_share": 1.0})
    assert outcome.counts == (0, 1_200)


def test_a_worker_that_dies_is_replaced(tmp_path, make_images):
    outcome = run_stub(make_images(20), tmp_path / "out", StubFactory(kill_once=str(tmp_path / "killed")))
    assert (tmp_path / "killed").exists()
    assert outcome.counts == (20, 0)
    assert_every_image_once(tmp_path / "out", 20)


def test_an_image_that_kills_its_worker_every_time_is_a_row_with_an_error(tmp_path, make_images):
    outcome = run_stub(make_images(6), tmp_path / "out", StubFactory(deadly_id=2), work={"images_per_chunk": 1})
    assert outcome.counts == (5, 1)
    rows = table(tmp_path / "out")
    assert rows[rows.error.notna()].image_id.tolist() == [2]
    assert rows.error[2].startswith("WorkerDied: ")


def test_a_model_that_does_not_load_stops_the_job(tmp_path, make_images):
    with pytest.raises(JobIncomplete, match="the stub does not load"):
        run_stub(make_images(3), tmp_path / "out", StubFactory(failing_load=True))


def test_killed_in_the_middle_nothing_is_lost_or_done_twice(tmp_path, make_images):
    """The driver dies by SIGKILL on a Ray of one CPU; another run, on two, goes on."""
    source, output = make_images(60), tmp_path / "out"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from stubs import StubFactory, run_stub\n"
        f"run_stub({str(source)!r}, {str(output)!r}, StubFactory(seconds_per_image=0.1), work={{'num_cpus': 1}})\n"
    )
    environment = {**os.environ, "RAY_TMPDIR": "/tmp"}
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(chunk_files(output)) < 2 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # Ray's processes notice
    finished = chunk_files(output)
    assert 2 <= len(finished) < 8
    record = json.loads((output / "run.json").read_text())
    assert record["state"] == "running"
    assert 8 <= record["images"]["captioned"] <= 8 * len(finished) <= record["images"]["captioned"] + 16

    outcome = run_stub(source, output)
    assert outcome.images == 60 - 8 * len(finished)
    assert outcome.counts == (60, 0)
    assert_every_image_once(output, 60)


def test_a_full_disk_is_looked_for_where_a_job_writes(tmp_path, make_images, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RAY_TMPDIR", "/somewhere/ray")
    monkeypatch.setenv("CAPTIONLIB_CACHE", "/somewhere/cache")
    monkeypatch.setattr("jobs.batch.rounds.Rounds.run", full)
    with pytest.raises(JobIncomplete) as caught:
        run_stub(make_images(2), tmp_path / "out")
    assert str(caught.value) == (
        f"2 images are not done: a disk is full: make room on that of the output ({tmp_path}/out/captions), "
        "Ray's files (/somewhere/ray; RAY_TMPDIR moves them) or the cache (/somewhere/cache). Finished rows are kept; "
        "run the same command again for the others"
    )
