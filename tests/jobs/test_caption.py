"""`python -m jobs.caption` as a person meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest
from stubs import PHOTOS

from captionlib.captioners.predictor import Predictor
from captionlib.captioners.zoo import default_search
from captionlib.config import EncoderConfig, ModelConfig, to_dict
from jobs.caption import main


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_captions_are_those_of_the_predictor(tmp_path, tiny_checkpoint, capfd):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for photo in PHOTOS.glob("*.jpg"):
        (source / photo.name).write_bytes(photo.read_bytes())
    (source / "[red]broken[red].jpg").write_bytes(b"")
    arguments = [str(source), str(output), "--model", str(tiny_checkpoint), "--show", "3", "--images-per-chunk", "2"]

    assert main([*arguments, "--num-actors", "2"]) == 0

    printed = capfd.readouterr().out
    assert "10 captioned + 1 failed = 11 planned" in printed
    assert "pandas.read_parquet" in printed
    rows = pandas.read_parquet(output / "captions").set_index("path")
    predictor = Predictor.from_checkpoint(tiny_checkpoint)
    for path, row in rows[rows.error.isna()].iterrows():
        (expected,) = predictor.caption([path])
        assert (row.caption, row.num_tokens) == (expected[0].text, expected[0].num_tokens)
        assert row.log_prob == pytest.approx(expected[0].log_prob, abs=1e-3)
        assert [other["text"] for other in row.captions] == [other.text for other in expected]
    (file,) = (output / "captions").glob("*.parquet")
    metadata = pq.read_schema(file).metadata
    assert metadata[b"captionlib.model"].decode() == predictor.fingerprint
    assert json.loads(metadata[b"captionlib.search"]) == to_dict(predictor.search)
    page = (output / "report.html").read_text()
    assert "EmptyFile" in page
    assert "<img" in page

    before = file.stat().st_mtime_ns
    assert main(arguments) == 0
    assert "Nothing to do: all 11 images have a row." in capfd.readouterr().out
    assert file.stat().st_mtime_ns == before
    assert main([*arguments, "--search.max-tokens", "5"]) == 2
    assert re.search(r"search.max_tokens is 8 there and 5 now.*--overwrite", capfd.readouterr().err)


def test_every_wrong_request_is_one_sentence(tmp_path, tiny_checkpoint, make_images, capfd):
    source, empty = make_images(1), tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "file").touch()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    cases = [
        ([tmp_path / "nowhere", "out"], "the input .*nowhere does not exist"),
        ([empty, "out"], "there are no images in "),
        ([source, tmp_path / "file" / "out"], "the output .* cannot be written"),
        ([source, "out", "--model", tmp_path / "nowhere"], "no checkpoint at "),
        ([source, "out", "--model", damaged], "config.json is damaged"),
        (["s4://bucket/photos", "out"], "s4"),
    ]
    for arguments, message in cases:
        given = [str(a) if a != "out" else str(tmp_path / "out") for a in arguments]
        if "--model" not in given:
            given += ["--model", str(tiny_checkpoint)]
        assert main(given) == 2
        error = capfd.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1, error
        assert "Traceback" not in error


def test_a_checkpoint_without_an_encoder_is_refused(tmp_path, tiny_checkpoint, make_images, capfd):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config["model"] = to_dict(ModelConfig(encoder=EncoderConfig(kind="vectors")))
    (tiny_checkpoint / "config.json").write_text(json.dumps(config))
    assert main([str(make_images(1)), str(tmp_path / "out"), "--model", str(tiny_checkpoint)]) == 2
    assert "has no encoder for images" in capfd.readouterr().err


def test_two_runs_do_not_share_an_output(tmp_path, tiny_checkpoint, make_images, capfd):
    from captionlib.storage.folder import Folder
    from jobs.batch.resume import output_lock

    source, output = make_images(1), tmp_path / "out"
    with output_lock(Folder.of(str(output))):
        assert main([str(source), str(output), "--model", str(tiny_checkpoint)]) == 2
    assert "another run is writing to" in capfd.readouterr().err


def test_the_default_search_is_the_checkpoints(tiny_checkpoint):
    assert default_search(str(tiny_checkpoint)).max_tokens == 8


def test_help_needs_neither_ray_nor_pytorch():
    code = "import sys, jobs.caption; sys.exit(jobs.caption.main(['--help']))"
    check = "import sys, atexit; atexit.register(lambda: print(sorted({'ray', 'torch', 'pandas'} & set(sys.modules))));"
    made = subprocess.run([sys.executable, "-c", check + code], capture_output=True, text=True, check=True)
    assert "INPUT OUTPUT" in made.stdout
    assert made.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("count", [200, 400], ids=["few", "on Ray"])
def test_an_interrupted_job_says_what_to_do(tmp_path, tiny_checkpoint, make_images, count):
    source, output = make_images(count), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.caption", source, output, "--model", tiny_checkpoint, "--images-per-chunk", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test suite in the background of a shell inherits that SIGINT is ignored; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "RAY_TMPDIR": "/tmp"},
    )
    deadline = time.monotonic() + 300
    while not list(output.glob("captions/captions-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground gets it
    out, error = process.communicate(timeout=300)
    assert process.returncode == 130, error
    assert "interrupted. Finished work is kept; run the same command again to resume" in error
    assert "Traceback" not in error + out
    assert list(output.glob("captions/captions-*"))
    assert json.loads((output / "run.json").read_text())["state"] == "incomplete"


def test_the_driver_does_not_wait_for_pytorch():
    batch = "jobs.batch.run, jobs.batch.caption_model, jobs.batch.gallery"
    code = (
        f"import sys, jobs.caption, {batch}, captionlib.checkpoints, captionlib.report; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
