"""Few images are done in a process beside the job, without Ray, and nothing that holds with Ray is lost by it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from stubs import StubFactory, run_stub, settings, stub_job

from captionlib.errors import UserError
from jobs.batch import single_process
from jobs.batch.run import run_batch_job
from jobs.batch.settings import WorkSettings
from jobs.cli.errors import JobIncomplete


@pytest.fixture(autouse=True)
def _no_ray_here(monkeypatch):
    monkeypatch.setattr(single_process, "_ray_is_here", lambda: False)
    monkeypatch.setattr(single_process.glob, "glob", lambda pattern: [])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("num_images", "work", "expected"),
    [
        (single_process.SMALL_JOB_IMAGES, {}, True),
        (single_process.SMALL_JOB_IMAGES, {"num_cpus": 1, "images_per_chunk": 1}, True),
        (single_process.SMALL_JOB_IMAGES + 1, {}, False),
        (1, {"address": "auto"}, False),
        (1, {"address": "local"}, False),
        (1, {"num_gpus": 1}, False),
        (1, {"num_actors": 1}, False),
    ],
)
def test_few_images_unless_something_asks_for_ray(num_images, work, expected, monkeypatch):
    assert single_process.is_small_job(num_images, WorkSettings(**work)) is expected
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert not single_process.is_small_job(num_images, WorkSettings(**work))


def test_a_machine_with_gpus_and_a_ray_that_is_there_are_used(monkeypatch):
    monkeypatch.setattr(single_process, "_ray_is_here", lambda: True)
    assert not single_process.is_small_job(1, WorkSettings())
    monkeypatch.setattr(single_process, "_ray_is_here", lambda: False)
    monkeypatch.setattr(single_process.glob, "glob", lambda pattern: ["/dev/nvidia0"])  # type: ignore[attr-defined]
    assert single_process.is_small_job(single_process.SMALL_GPU_JOB_IMAGES, WorkSettings())
    assert not single_process.is_small_job(single_process.SMALL_GPU_JOB_IMAGES + 1, WorkSettings())
    monkeypatch.setattr(single_process.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])  # type: ignore[attr-defined]
    assert not single_process.is_small_job(1, WorkSettings())


def test_every_image_is_captioned_or_says_why_not(tmp_path, make_images):
    source = make_images(20)
    (source / "9999.jpg").touch()
    outcome = run_stub(source, tmp_path / "out")
    assert outcome.counts == (20, 1)
    rows = pandas.read_parquet(tmp_path / "out" / "captions").sort_values("image_id")
    assert rows.image_id.tolist() == list(range(21))
    assert [caption.partition(":")[0] for caption in rows.caption[:20]] == [str(i) for i in range(20)]
    assert rows.error.iloc[20].startswith("EmptyFile")


def test_a_process_that_dies_says_so_and_is_replaced(tmp_path, make_images, capsys):
    outcome = run_stub(make_images(20), tmp_path / "out", StubFactory(kill_once=str(tmp_path / "killed")))
    assert (tmp_path / "killed").exists()
    assert outcome.counts == (20, 0)
    assert "the process that decodes images and runs the model died at images " in capsys.readouterr().err


def test_an_image_at_which_the_process_dies_every_time_is_a_row_with_an_error(tmp_path, make_images):
    outcome = run_stub(make_images(20), tmp_path / "out", StubFactory(deadly_id=11))
    assert outcome.counts == (19, 1)
    rows = pandas.read_parquet(tmp_path / "out" / "captions").set_index("image_id")
    assert rows.error[11].startswith("WorkerDied: ")


def test_a_model_that_does_not_load_stops_the_job(tmp_path, make_images):
    with pytest.raises(JobIncomplete, match=r"20 images .* not done: the model cannot be loaded: .*the stub does"):
        run_stub(make_images(20), tmp_path / "out", StubFactory(failing_load=True))


def test_ray_is_not_even_imported(tmp_path, make_images, tiny_checkpoint):
    code = (
        "import sys, jobs.caption; from jobs.batch import single_process; "
        "single_process.glob.glob = lambda pattern: []; "
        "status = jobs.caption.main(sys.argv[1:]); sys.exit(status or 'ray' in sys.modules)"
    )
    given = [str(make_images(3)), str(tmp_path / "out"), "--model", str(tiny_checkpoint)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], env=environment, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "3 captioned + 0 failed = 3 planned" in done.stdout


@pytest.mark.parametrize(("failing", "left"), [(range(20), 20), ([11], 1)])
def test_a_model_that_fails_is_said_at_once_and_not_waited_for(tmp_path, make_images, capsys, failing, left):
    source, output = make_images(20), tmp_path / "out"
    factory = StubFactory(failing_ids=tuple(failing))
    with pytest.raises(JobIncomplete, match=r"the model fails at .*RuntimeError: the stub is broken.*remove"):
        run_stub(source, output, factory, faults={"transport_pause": 1_000.0})
    said = capsys.readouterr().err
    assert said.count("the model failed at images") == 1
    (file,) = (output / "failures").iterdir()
    assert str(file) in said
    assert "Traceback" in file.read_text()
    assert run_stub(source, output).images == left


def test_rows_of_another_arithmetic_are_not_mixed(tmp_path, make_images):
    source, output = make_images(4), tmp_path / "out"
    job = dataclasses.replace(stub_job(), arithmetic=lambda gpu: "8-bit integers in OpenVINO")
    run_batch_job(job, settings(source, output))
    assert json.loads((output / "run.json").read_text())["arithmetic"] == "8-bit integers in OpenVINO"
    make_images(6)
    other = dataclasses.replace(job, arithmetic=lambda gpu: "bfloat16 in PyTorch")
    with pytest.raises(UserError, match="computed in 8-bit integers in OpenVINO, .* in bfloat16 in PyTorch"):
        run_batch_job(other, settings(source, output))
    assert run_batch_job(job, settings(source, output)).images == 2


def test_warnings_of_the_model_reach_the_user_once(tmp_path, make_images, capsys):
    run_stub(make_images(4), tmp_path / "out", StubFactory(warning="half speed"), work={"images_per_chunk": 1})
    assert capsys.readouterr().err.count("half speed") == 1
