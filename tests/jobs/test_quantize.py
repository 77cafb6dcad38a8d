"""`python -m jobs.quantize`: a checkpoint of its own, whose integers `jobs.caption` takes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas
import pytest
from stubs import PHOTOS

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import INT8_ENCODER, WEIGHTS, load_checkpoint
from jobs import caption
from jobs.quantize import main


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_the_job_captions_with_integers(
    tmp_path: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, made, output = tmp_path / "in", tmp_path / "int8", tmp_path / "out"
    shutil.copytree(PHOTOS, source, ignore=lambda _, names: [name for name in names if not name.endswith(".jpg")])

    assert main([str(tiny_checkpoint), str(source), str(made), "--sample", "6"]) == 0
    printed = capfd.readouterr()
    assert re.search(r"images/s in float32, .* in 8-bit integers\n.*on 3 photos: mean cosine \d", printed.out)
    float_one, int8_one = load_checkpoint(tiny_checkpoint), load_checkpoint(made)
    assert float_one.int8_encoder is None
    assert int8_one.model == float_one.model
    assert int8_one.training == float_one.training

    arguments = [str(source), str(output), "--model", str(made), "--engine", "int8"]
    assert caption.main(arguments) == 0
    predictor = Predictor.from_checkpoint(made)
    assert predictor.engine is not None
    assert predictor.engine.name.endswith("8-bit integers")
    rows = pandas.read_parquet(output / "captions").set_index("path")
    for path, row in rows.iterrows():
        (expected,) = predictor.caption([str(path)])
        assert (row.caption, row.num_tokens) == (expected[0].text, expected[0].num_tokens)
        assert row.log_prob == pytest.approx(expected[0].log_prob, abs=1e-3)
    exact = Predictor.from_checkpoint(made, engine="openvino").caption(sorted(source.iterdir()))
    assert any(
        abs(row.log_prob - one[0].log_prob) > 1e-3
        for row, one in zip(rows.sort_index().itertuples(), exact, strict=True)
    )

    capfd.readouterr()
    assert caption.main([*arguments[:-1], "openvino"]) == 2
    assert re.search("computed in 8-bit integers in OpenVINO, .* in float32 in OpenVINO", capfd.readouterr().err)


def test_the_decoder_can_be_stored_in_integers_too(
    tmp_path: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "int8"
    original = (tiny_checkpoint / WEIGHTS).read_bytes()
    assert main([str(tiny_checkpoint), str(PHOTOS), str(made), "--sample", "4", "--eight-bit-decoder"]) == 0
    assert (tiny_checkpoint / WEIGHTS).read_bytes() == original
    before, after = len(original), (made / WEIGHTS).stat().st_size
    assert after < before
    says = f"decoder stored in 8-bit integers: {WEIGHTS} has {after:,} bytes instead of {before:,}\n"
    assert says in capfd.readouterr().out
    float_one, int8_one = load_checkpoint(tiny_checkpoint), load_checkpoint(made)
    assert int8_one.int8_encoder == made / INT8_ENCODER
    for name, value in float_one.part("encoder").items():
        assert value.equal(int8_one.part("encoder")[name])


def test_wrong_requests(tmp_path: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    photos, out = str(PHOTOS), str(tmp_path / "out")
    for arguments, message in (
        ([str(tmp_path / "nowhere"), photos, out], "no checkpoint at "),
        ([str(tiny_checkpoint), str(tmp_path / "empty"), out], "there are no images in "),
    ):
        assert main(arguments) == 2
        assert re.search(message, capfd.readouterr().err)
    assert caption.main([photos, out, "--model", str(tiny_checkpoint), "--engine", "int8"]) == 2
    assert "has no encoder in 8-bit integers: make one that has with python -m jobs.quantize" in capfd.readouterr().err
