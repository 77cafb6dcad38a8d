"""The files that a run's folder shows of its epochs, from rows written by hand."""

from __future__ import annotations

import csv
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from captionlib.config import EncoderConfig
from captionlib.vocabulary import SPECIAL_WORDS, Vocabulary
from jobs.training.data import Prepared, Split
from jobs.training.report import RunReport, tensorboard_events
from jobs.training.settings import TrainSettings

PHOTOS = Path(__file__).parents[2] / "photos"


def row(epoch: int, caption: str) -> dict[str, Any]:
    return {
        "epoch": epoch, "step": 10 * epoch, "train_loss": 3.0 / epoch, "dev_loss": 3.5 / epoch, "cider_d": 0.1 * epoch,
        "score": 0.1 * epoch, "seconds": 2.0, "dev_captions": [caption, "a zeppelin"],
    }  # fmt: skip


@pytest.fixture
def report(tmp_path: Path) -> RunReport:
    photo = next(PHOTOS.glob("*.jpg"))
    shutil.copy(photo, tmp_path / "there.jpg")
    dev = Split([str(tmp_path / "there.jpg"), str(tmp_path / "not_there.jpg")], [("a",), ("b",)], [[["a"]], [["b"]]])
    settings = TrainSettings(source="features", run=str(tmp_path / "run"))
    vocabulary = Vocabulary([*SPECIAL_WORDS, "a"])
    return RunReport(Prepared(settings, EncoderConfig(), None, vocabulary, dev, dev))


def test_metrics_curves_and_dev_photos(report: RunReport, tmp_path: Path) -> None:
    report.write([row(1, "a a a"), row(2, "a dog"), row(3, "a dog")])
    run = tmp_path / "run"
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(r["train_loss"]) for r in rows] == [3.0, 1.5, 1.0]
    assert "dev_captions" not in rows[0]
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text()
    assert "best CIDEr-D, epoch 3" in page
    assert "there.jpg" in page
    assert "not_there.jpg" not in page
    assert [text in page for text in ("epoch 1", "a a a", "epoch 2", "a zeppelin")] == [True, True, True, False]
    assert page.count("a dog") == 3  # caption, its description, epoch 2; epoch 3 said the same and is left out


def test_an_epoch_more_leaves_the_event_files_of_the_others_alone(report: RunReport, tmp_path: Path) -> None:
    report.write([row(1, "a")])
    (first,) = (tmp_path / "run" / "tensorboard").iterdir()
    before = first.read_bytes()
    report.write([row(1, "a"), row(2, "a")])
    names = sorted(file.name for file in (tmp_path / "run" / "tensorboard").iterdir())
    assert len(names) == 2
    assert names[0] == first.name
    assert first.read_bytes() == before


def test_events_hold_the_numbers_at_their_step() -> None:
    from tensorboardX.proto.event_pb2 import Event

    data = tensorboard_events({"epoch": 2, "step": 20, "cider_d": 0.25, "dev_loss": 1.5})
    found = {}  # type: ignore[var-annotated]
    while data:  # a record: length (8 bytes), checksum (4), event, checksum (4)
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[12 + length + 4 :]
    assert found == {"cider_d": (20, 0.25), "dev_loss": (20, 1.5)}


def test_what_cannot_be_written_is_said_once_and_stops_nothing(
    report: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("a file in the way")
    for _ in range(2):
        report.write([row(1, "a")])
    assert capsys.readouterr().err.count("could not be written") == 1
