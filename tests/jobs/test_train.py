"""The training job on tiny features: it learns, exports what captions, and tells what is wrong before it starts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import load_checkpoint, weights_fingerprint
from captionlib.encoders import build_encoder, describe_encoder
from jobs.cli.arguments import parse
from jobs.train import main
from jobs.training.settings import TrainSettings
from tests.tiny_training import SENTENCES, write_grid_features

NUM_TRAIN, NUM_DEV = 48, 6


@pytest.fixture(scope="module")
def encoder_fingerprint() -> str:
    return weights_fingerprint(
        build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0"), pretrained=True)
    )


@pytest.fixture
def dataset(tmp_path: Path, encoder_fingerprint: str) -> Path:
    """54 images of three kinds, with features that tell the kind, as the feature job writes them."""
    encoder = describe_encoder("efficientnet_lite", "efficientnet_lite0")
    rng = np.random.default_rng(0)
    names = [f"{number:02d}.jpg" for number in range(NUM_TRAIN + NUM_DEV)]
    kinds = np.arange(len(names)) % 3
    centres = rng.normal(size=(3, encoder.feature_dim))
    values = centres[kinds][:, None] + 0.1 * rng.normal(size=(len(names), encoder.num_positions, encoder.feature_dim))
    folder = tmp_path / "features"
    folder.mkdir()
    write_grid_features(folder / "part-0.parquet", names, values, encoder_fingerprint)
    rows = [
        f"{name},{caption},{'train' if number < NUM_TRAIN else 'dev'}"
        for number, name in enumerate(names)
        for caption in SENTENCES[int(kinds[number])]
    ]
    (tmp_path / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")
    return tmp_path


def arguments(dataset: Path, *more: str, run: str = "run") -> list[str]:
    return [
        *(str(dataset / "features"), str(dataset / run), "--cpus-per-worker", "1"),
        *("--data.kind", "csv", "--data.captions-file", str(dataset / "captions.csv")),
        *("--training.min-count", "1", "--training.images-per-step", "6", "--training.epochs", "6"),
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
    assert [row["epoch"] for row in history] == list(range(1, 7))
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


def test_the_commands_of_the_readme_are_understood() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^\$ python -m jobs\.train (.*?)(?:  +#.*)?$", text, re.M)
    assert len(commands) >= 3
    for command in commands:
        settings = parse(TrainSettings, command.split(), prog="train", description="").resolved()
        assert "://" in settings.run or Path(settings.run).is_absolute()


def test_features_of_another_encoder_than_stated(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated = ("--encoder.name", "efficientnet_lite1")
    assert "made by efficientnet_lite0, not by efficientnet_lite1" in fails(arguments(dataset, *stated), capsys)


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


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--num-workers", "9"], "'train' has 48 images, and steps of 6 images are too few for 9 workers"),
        (["--decoder.kind", "transformer", "--search.max-tokens", "40"], "--search.max-tokens 40 exceeds the 39 words"),
        (["--decoder.kind", "lstm_init", "--training.doubly-stochastic", "1"], "lstm_init gives none"),
    ],
)
def test_settings_that_do_not_go_together(
    dataset: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(arguments(dataset, *more), capsys)


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
    write_grid_features(dataset / "features" / "part-0.parquet", names, values, encoder_fingerprint)
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


def write_image_captions(images: Path, count: int) -> None:
    rows = [f"{i:04d}.jpg,{SENTENCES[i % 3][0]},{'train' if i < count - 2 else 'dev'}" for i in range(count)]
    (images.parent / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")


def from_images(images: Path, *more: str) -> list[str]:
    small = ("--training.images-per-step", "3", "--training.epochs", "2", "--search.min-tokens", "2")
    return [str(images), *arguments(images.parent)[1:], "--from-images", *small, *more]


def test_an_encoder_is_trained_from_a_stage_on(
    make_images: Callable[..., Path], ray_of_two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(8)
    write_image_captions(images, 8)
    assert main(from_images(images, "--encoder.train-from", "head")) == 0
    assert "images through an encoder trained from head on" in capsys.readouterr().err
    trained = load_checkpoint(images.parent / "run" / "best")
    encoder = build_encoder(trained.model.encoder, pretrained=True)
    known = {f"encoder.{name}": value.half().float() for name, value in encoder.state_dict().items()}
    changed = {name for name, value in trained.weights.items() if name in known and not value.equal(known[name])}
    assert changed
    assert {name.split(".")[3] for name in changed} == {"head"}
    assert Predictor(trained, engine="torch").caption([images / "0000.jpg"])[0][0].text
    assert "trained from head on" in (images.parent / "run" / "best" / "model_card.md").read_text()


def test_what_is_wrong_with_images(make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    images = make_images(8)
    write_image_captions(images, 9)
    assert "0008.jpg" in fails(from_images(images), capsys)
    write_image_captions(images, 8)
    message = fails(from_images(images, "--encoder.train-from", "layer9"), capsys)
    assert "efficientnet_lite0 has no stage 'layer9'; it has " in message
    with pytest.raises(SystemExit):
        main([*arguments(images.parent), "--encoder.train-from", "blocks.14"])
    assert "--from-images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments(images.parent), "--encoder.features", "pooled"])
    assert "--encoder.name" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_its_images_and_is_not_tried_again(
    dataset: Path, ray_of_two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    learning = ("--training.optimizer.learning-rate", "1e30", "--training.optimizer.kind", "sgd")
    assert main(arguments(dataset, *learning, "--training.optimizer.clip-norm", "0")) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "at step" in message
    assert ".jpg" in message
    assert "--training.optimizer.learning-rate" in message


def test_a_photo_that_cannot_be_decoded_is_named(
    make_images: Callable[..., Path], ray_of_two_cpus: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(8)
    write_image_captions(images, 8)
    (images / "0003.jpg").write_bytes(b"no photo")
    assert main(from_images(images, "--max-failures", "0")) == 1
    message = capsys.readouterr().err
    assert "Traceback (most recent" not in message
    assert "0003.jpg cannot be trained on" in message.splitlines()[-1]
