"""The calibration command: checkpoint and captioned images → a checkpoint whose rows have a confidence."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import load_checkpoint
from jobs import calibrate, caption


@pytest.fixture
def data(make_images: Callable[..., Path], tiny_checkpoint: Path) -> str:
    """40 images: people say the same as the model of every second one, and something else of the others."""
    folder = make_images(40)
    paths = sorted(folder.iterdir())
    said = Predictor.from_checkpoint(tiny_checkpoint).caption(paths)
    table = folder.parent / "captions.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for number, (path, captions) in enumerate(zip(paths, said, strict=True)):
            other = f"nothing like {number} that at all"
            writer.writerow([path.name, other if number % 2 else f"{captions[0].text} {number}"])
    return f"csv,{table},all,{folder}"


def test_calibrate_and_caption(data: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = data.split(",")[-1]
    better = tmp_path / "calibrated"
    assert calibrate.main([str(tiny_checkpoint), str(better), "--data", data, "--folds", "4"]) == 0
    told = capsys.readouterr().out
    assert "40 captions, 20 right; cross-validated in 4 parts" in told
    stored = load_checkpoint(better).confidence
    assert stored is not None
    assert (stored.num_captions, stored.num_right, stored.fitted_on) == (40, 20, "csv all")
    assert stored.area_under_roc is not None

    arguments = [folder, str(tmp_path / "out"), "--model", str(better), "--min-confidence", "0.5"]
    assert caption.main(arguments) == 0
    rows = pq.read_table(tmp_path / "out" / "captions").to_pylist()
    assert len(rows) == 40
    assert all(0 < row["confidence"] < 1 for row in rows)
    assert all(row["low_confidence"] == (row["confidence"] < 0.5) for row in rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "% sure" in page
    assert page.count("data-confidence") == 40
    assert page.count('class="card doubtful"') == sum(row["low_confidence"] for row in rows)


def test_a_model_without_calibration_has_no_confidence(
    make_images: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = make_images(3)
    (folder / "broken.jpg").write_bytes(b"no picture")
    assert caption.main([str(folder), str(tmp_path / "out"), "--model", str(tiny_checkpoint)]) == 0
    rows = pq.read_table(tmp_path / "out" / "captions").to_pylist()
    assert [(row["confidence"], row["low_confidence"]) for row in rows] == [(None, None)] * 4
    arguments = [str(folder), str(tmp_path / "o2"), "--model", str(tiny_checkpoint), "--min-confidence", "0.5"]
    assert caption.main(arguments) == 2
    assert "jobs.calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "at least one data set"), (["--data", "flickr8k"], "expected KIND,PATH,SPLIT")],
)
def test_what_is_wrong_is_said(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert calibrate.main([str(tiny_checkpoint), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
