"""Training on vectors that were made elsewhere, (images, 1, width), with no image at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captionlib.captioners.predictor import Predictor
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.images.pixels import normalize, to_pixels
from jobs import caption
from jobs.train import main
from tests.tiny_training import SENTENCES

pytestmark = pytest.mark.usefixtures("ray_of_two_cpus")

NOUNS = ("dog", "child", "men")
"""What only the sentences of one kind speak of."""
PHOTOS = Path(__file__).parents[2] / "photos"
SMALL = (
    *("--training.min-count", "1", "--training.images-per-step", "3", "--training.optimizer.learning-rate", "0.01"),
    *("--decoder.hidden-dim", "32", "--decoder.embedding-dim", "16", "--decoder.projection-dim", "32"),
    *("--decoder.dropout", "0", "--cpus-per-worker", "1", "--data.kind", "csv"),
)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_decoder_learns_vectors_with_structure(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(0)
    kinds = np.arange(102) % len(SENTENCES)
    centres = generator.normal(size=(len(SENTENCES), 1, 2048))
    vectors = (centres[kinds] + 0.3 * generator.normal(size=(102, 1, 2048))).astype(np.float32)
    names = [f"{number:03d}.jpg" for number in range(102)]
    if suffix == ".npz":
        np.savez(tmp_path / "vectors.npz", names=np.array(names), features=vectors)
    else:
        np.save(tmp_path / "vectors.npy", vectors[:, 0])  # (N, 2048) is as good
        (tmp_path / "vectors.txt").write_text("\n".join(names))
    write_captions(tmp_path, names, [SENTENCES[kind] for kind in kinds], num_train=96)

    source, run = tmp_path / f"vectors{suffix}", tmp_path / "run"
    arguments = [str(source), str(run), "--data.captions-file", str(tmp_path / "captions.csv"), *SMALL]
    assert main([*arguments, "--decoder.kind", "lstm_init", "--training.epochs", "6"]) == 0

    predictor = Predictor.from_checkpoint(run / "best")
    for number in range(96, 102):
        text = predictor.caption_features(vectors[number : number + 1])[0][0].text
        assert NOUNS[kinds[number]] in text.split()
    with pytest.raises(ValueError, match="does not know which encoder"):
        predictor.caption([PHOTOS / "cat.jpg"])


def test_with_the_encoder_that_made_them_it_captions_photos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", "pooled")
    encoder = build_encoder(config, pretrained=True)
    photos = sorted(PHOTOS.glob("*.jpg"))[:3]
    pixels = np.stack([to_pixels(Image.open(photo).convert("RGB"), config.preprocessing) for photo in photos])
    import torch

    with torch.inference_mode():
        vectors = encoder(normalize(torch.from_numpy(pixels), config.preprocessing)).numpy()
    files = [photo.name for photo in photos]
    names = [f"{copy}/{file}" for copy in range(11) for file in files]
    np.savez(tmp_path / "vectors.npz", names=np.array(names), features=np.concatenate([vectors] * 11))
    write_captions(tmp_path, names, [*SENTENCES] * 11, num_train=30)

    run, output = tmp_path / "run", tmp_path / "captions"
    arguments = [str(tmp_path / "vectors.npz"), str(run), *SMALL, "--training.epochs", "2"]
    arguments += ["--data.captions-file", str(tmp_path / "captions.csv"), "--encoder.name", "efficientnet_lite0"]
    assert main([*arguments, "--encoder.features", "pooled", "--training.images-per-step", "1"]) == 0
    assert caption.main([str(PHOTOS), str(output), "--model", str(run / "best"), "--no-report"]) == 0

    rows = {Path(row["path"]).name: row["caption"] for row in pq.read_table(output / "captions").to_pylist()}
    for file, noun in zip(files, NOUNS, strict=True):
        assert noun in rows[file].split()

    assert main(arguments) == 2  # grid features are 49 times as many numbers
    assert "49 x 1280" in capfd.readouterr().err


def write_captions(folder: Path, names: list[str], captions: list[tuple[str, ...]], *, num_train: int) -> None:
    """captions.csv, with the first images as train and the others as dev."""
    rows = [
        f"{name},{text},{'train' if number < num_train else 'dev'}"
        for number, name in enumerate(names)
        for text in captions[number]
    ]
    (folder / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")
