"""`python -m jobs.train_detector`: features of captioned images → a checkpoint whose captions are re-ranked."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import load_checkpoint, load_weights, weights_fingerprint
from captionlib.confidence import DETECTOR_SIGNALS, SIGNALS
from captionlib.encoders import build_encoder
from jobs import calibrate, caption
from jobs.train_detector import main
from tests.tiny_training import write_grid_features

NUM_IMAGES = 40


@pytest.fixture
def data(make_images: Callable[..., Path], tiny_checkpoint: Path) -> tuple[str, Path]:
    """Images whose captions name a dog if they are bright, and features of the checkpoint's encoder."""
    folder = make_images(NUM_IMAGES)
    paths = sorted(folder.iterdir())
    table = folder.parent / "captions.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "split"])
        for number, path in enumerate(paths):
            is_bright = number % 2
            Image.new("RGB", (64, 64), (230, 230, 200 + number) if is_bright else (10, 10, number)).save(path)
            words = "a dog running" if is_bright else "a man sitting on red grass"
            writer.writerow([path.name, words, "train" if number < NUM_IMAGES - 10 else "dev"])
    checkpoint = load_checkpoint(tiny_checkpoint)
    predictor = Predictor(checkpoint, engine="torch")
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    encoder = build_encoder(checkpoint.model.encoder, pretrained=False)
    load_weights(encoder, checkpoint.part("encoder"), "the checkpoint")
    features = folder.parent / "features"
    features.mkdir()
    write_grid_features(
        features / "0.parquet",
        [path.name for path in paths],
        predictor.features(pixels),
        weights_fingerprint(encoder),
        checkpoint.model.encoder,
    )
    return f"csv,{table},{{split}},{folder}", features


def test_a_checkpoint_learns_to_detect_words(
    data: tuple[str, Path], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text, features), made = data, tmp_path / "detecting"
    arguments = [str(tiny_checkpoint), str(features), str(made), "--data", text.format(split="train")]
    arguments += ["--dev", text.format(split="dev"), "--weight", "0.5", "--detector.hidden-dim", "16"]
    arguments += ["--detector.dropout", "0", "--training.images-per-step", "5", "--training.learning-rate", "0.02"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "30 images, 17 words\nepoch 1 of 10: loss " in printed.err
    here, without = map(float, re.findall(r"[\d.]+$|[\d.]+(?=; of the frequencies)", printed.out.splitlines()[0]))
    assert here < without

    before, after = load_checkpoint(tiny_checkpoint), load_checkpoint(made)
    assert after.model == replace(before.model, detector=after.model.detector)
    assert after.model.detector is not None
    assert after.model.detector.hidden_dim == 16
    assert after.search == replace(before.search, detector_weight=0.5)
    assert after.fingerprint != before.fingerprint
    predictor, folder = Predictor(after, engine="torch"), Path(text.split(",")[-1])
    bright = np.full((1, 64, 64, 3), 230, np.uint8)
    words = after.vocabulary
    for pixels, seen, unseen in ((bright, "dog", "man"), (np.zeros_like(bright), "man", "dog")):
        detected = predictor.captioner.detect(torch.from_numpy(predictor.features(pixels)))
        assert detected is not None
        (here_, there) = (detected[0].probabilities[words.encode([word])[0]] for word in (seen, unseen))
        assert here_ > 0.8 > 0.2 > there

    output = tmp_path / "out"
    assert caption.main([str(folder), str(output), "--model", str(made)]) == 0
    rows = pq.read_table(output / "captions").to_pylist()
    said = predictor.caption(sorted(folder.iterdir()))
    assert {Path(row["path"]).name: row["caption"] for row in rows} == {
        path.name: captions[0].text for path, captions in zip(sorted(folder.iterdir()), said, strict=True)
    }


def test_the_confidence_uses_the_detector(
    data: tuple[str, Path], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (text, features), made = data, tmp_path / "detecting"
    train = text.format(split="train")
    assert main([str(tiny_checkpoint), str(features), str(made), "--data", train]) == 0
    folder = Path(text.split(",")[-1])
    said = Predictor.from_checkpoint(made).caption(sorted(folder.iterdir()))
    table = tmp_path / "said.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for number, (path, captions) in enumerate(zip(sorted(folder.iterdir()), said, strict=True)):
            writer.writerow(
                [path.name, f"{captions[0].text} {number}" if number % 2 else f"nothing like {number} at all"]
            )
    assert calibrate.main([str(made), str(made), "--data", f"csv,{table},all,{folder}", "--folds", "4"]) == 0
    stored = load_checkpoint(made).confidence
    assert stored is not None
    assert tuple(name for name, *_ in stored.signals) == SIGNALS + DETECTOR_SIGNALS
    confidence = Predictor.from_checkpoint(made).caption([next(folder.iterdir())])[0][0].confidence
    assert confidence is not None
    assert 0 < confidence < 1

    # A new detector changes captions and evidence, so that the old calibration would be wrong.
    capsys.readouterr()
    assert main([str(made), str(features), str(made), "--data", train]) == 0
    assert "run python -m jobs.calibrate" in capsys.readouterr().out
    assert load_checkpoint(made).confidence is None


def test_wrong_requests(
    data: tuple[str, Path], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, features = data
    train, out = text.format(split="train"), str(tmp_path / "out")
    other = tmp_path / "other_features"
    shutil.copytree(features, other)
    names = [f"{number:04d}.jpg" for number in range(3)]
    write_grid_features(
        other / "0.parquet", names, np.zeros((3, 4, 1280)), "0" * 16, load_checkpoint(tiny_checkpoint).model.encoder
    )
    for arguments, message in (
        ([str(features), out], "give at least one data set"),
        ([str(features), out, "--data", "csv"], "--data csv: expected KIND,PATH,SPLIT"),
        ([str(other), out, "--data", train], f"the encoder of {tiny_checkpoint} did not make the features {other}"),
    ):
        assert main([str(tiny_checkpoint), *arguments]) == 2
        assert message in capsys.readouterr().err
    photos = text.split(",")[-1]
    asked = [photos, out, "--model", str(tiny_checkpoint), "--search.detector-weight", "0.1"]
    assert caption.main(asked) == 2
    assert (
        "this captioner has none: set it to 0, or add one with python -m jobs.train_detector" in capsys.readouterr().err
    )
