"""The training job on tiny features: it learns, exports what captions, and tells what is wrong before it starts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captionlib.checkpoints import load_checkpoint, weights_fingerprint
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.features import feature_schema
from jobs.train import main

NUM_TRAIN, NUM_DEV = 24, 6
SENTENCES = {
    0: ["A dog runs on the grass .", "The dog is running ."],
    1: ["A child plays in the snow .", "A child in a red coat ."],
    2: ["Two men ride bikes .", "Men on bikes ride down a hill ."],
}


@pytest.fixture(scope="module")
def encoder_fingerprint() -> str:
    return weights_fingerprint(
        build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0"), pretrained=True)
    )


@pytest.fixture
def dataset(tmp_path: Path, encoder_fingerprint: str) -> Path:
    """Thirty images of three kinds, with features that tell the kind, as the feature job writes them."""
    encoder = describe_encoder("efficientnet_lite", "efficientnet_lite0")
    rng = np.random.default_rng(0)
    names = [f"{number:02d}.jpg" for number in range(NUM_TRAIN + NUM_DEV)]
    kinds = np.arange(len(names)) % 3
    centres = rng.normal(size=(3, encoder.feature_dim))
    values = centres[kinds][:, None] + 0.1 * rng.normal(size=(len(names), encoder.num_positions, encoder.feature_dim))
    folder = tmp_path / "features"
    folder.mkdir()
    write_features(folder / "part-0.parquet", names, values, encoder_fingerprint)
    rows = [
        f"{name},{caption},{'train' if number < NUM_TRAIN else 'dev'}"
        for number, name in enumerate(names)
        for caption in SENTENCES[int(kinds[number])]
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")
    return tmp_path


def write_features(path: Path, names: list[str], values: np.ndarray, fingerprint: str) -> None:
    schema = feature_schema(describe_encoder("efficientnet_lite", "efficientnet_lite0"), fingerprint)
    flat = pa.array(values.astype(np.float16).reshape(-1), pa.float16())
    columns = [
        pa.array(range(len(names)), pa.int64()),
        pa.array(names),
        pa.FixedSizeListArray.from_arrays(flat, values[0].size),
        pa.nulls(len(names), pa.string()),
    ]
    pq.write_table(pa.table(columns, schema=schema), path)


def arguments(dataset: Path, *more: str, run: str = "run") -> list[str]:
    return [
        *(str(dataset / "features"), str(dataset / run), "--cpus-per-worker", "1"),
        *("--data.kind", "csv", "--data.captions-file", str(dataset / "captions.csv")),
        *("--training.min-count", "1", "--training.images-per-step", "6", "--training.epochs", "12"),
        *("--training.optimizer.learning-rate", "0.01", "--decoder.dropout", "0"),
        *("--decoder.hidden-dim", "32", "--decoder.embedding-dim", "16", "--decoder.attention-dim", "16"),
        *("--decoder.projection-dim", "32"),
        *more,
    ]


def test_it_learns_exports_and_is_finished(
    dataset: Path, ray_of_two_cpus: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset)
    here = Path()  # workers have another working directory
    assert main(arguments(here)) == 0
    history = json.loads((dataset / "run" / "metrics.json").read_text())
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["cider_d"] > 1.0  # the kinds are easily told apart

    checkpoint = load_checkpoint(dataset / "run" / "best")
    assert checkpoint.training["scores"]["cider_d"] == max(row["cider_d"] for row in history)
    assert "dog" in checkpoint.vocabulary
    card = (dataset / "run" / "best" / "model_card.md").read_text()
    assert "efficientnet_lite0" in card
    assert "CIDEr-D" in card

    capsys.readouterr()
    assert main(arguments(dataset)) == 0
    assert "Nothing to do" in capsys.readouterr().out

    assert main(arguments(dataset, "--training.label-smoothing", "0.2")) == 2
    assert "training.label_smoothing is 0.1 there and 0.2 now" in capsys.readouterr().err

    # From that checkpoint on, with a learning rate at which nothing improves any more.
    more = ["--start-from", "run/best", "--training.watch.patience", "2", "--training.optimizer.learning-rate", "1e-9"]
    assert main(arguments(here, *more, run="second")) == 0
    assert "stopped early: 2 epochs without a better cider_d" in capsys.readouterr().err
    with (dataset / "second" / "metrics.csv").open() as stream:
        second = list(csv.DictReader(stream))
    assert [row["epoch"] for row in second] == ["1", "2", "3"]
    assert float(second[0]["cider_d"]) == pytest.approx(max(row["cider_d"] for row in history), abs=0.02)
    assert len(list((dataset / "second" / "tensorboard").iterdir())) == 3
    assert "CIDEr-D" in (dataset / "second" / "report.html").read_text()


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("source", "says"),
    [("nowhere/best", "no checkpoint at"), ("default", "default cannot be started from: decoder.projection_dim is")],
)
def test_a_checkpoint_that_cannot_be_started_from(
    dataset: Path, source: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(arguments(dataset, "--start-from", source), capsys)


def test_a_filter_that_leaves_nothing(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(arguments(dataset, "--training.filter.min-words", "20"), capsys)
    assert "--training.filter" in message


def test_no_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails([str(tmp_path / "none"), str(tmp_path / "run")], capsys)
    assert "none" in message
    assert "jobs.extract_features" in message


def test_captions_of_images_without_features(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (dataset / "captions.csv").open("a") as stream:
        stream.write("nowhere.jpg,A ghost .,train\n")
    assert "nowhere.jpg" in fails(arguments(dataset), capsys)


def test_an_empty_split(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'test'" in fails(arguments(dataset, "--data.dev-split", "test"), capsys)


def test_features_that_are_not_finite(
    dataset: Path, encoder_fingerprint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number:02d}.jpg" for number in range(NUM_TRAIN + NUM_DEV)]
    values = np.zeros((len(names), 49, 1280))
    values[7, 3, 11] = np.nan
    write_features(dataset / "features" / "part-0.parquet", names, values, encoder_fingerprint)
    message = fails(arguments(dataset), capsys)
    assert "07.jpg" in message
    assert "not finite" in message


def test_a_run_that_cannot_be_written(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "run").write_text("a file in the way")
    assert "cannot be written" in fails(arguments(dataset), capsys)


def test_a_wrong_number_is_refused_by_name(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(arguments(dataset, "--training.epochs", "0"))
    assert exit_status.value.code == 2
    assert "epochs must be at least 1, got 0" in capsys.readouterr().err
