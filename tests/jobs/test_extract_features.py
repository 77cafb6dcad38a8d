from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import weights_fingerprint
from captionlib.features.store import open_features
from captionlib.images.pixels import to_pixels
from jobs.batch.feature_model import load_encoder
from jobs.extract_features import main

pytestmark = pytest.mark.usefixtures("ray_of_two_cpus")


def test_features_of_images_and_of_their_mirror_images(tmp_path, tiny_checkpoint, capfd):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 256, (70, 90, 3), np.uint8)).save(source / f"{i}.png")
    (source / "2.png").write_bytes(b"")
    arguments = [str(source), str(output), "--encoder.checkpoint", str(tiny_checkpoint), "--flip"]

    assert main([*arguments, "--images-per-chunk", "3"]) == 0

    assert "4 encoded + 1 failed = 5 planned" in capfd.readouterr().out
    plain, flipped = open_features(str(output)), open_features(str(output / "features_flipped"))
    predictor = Predictor.from_checkpoint(tiny_checkpoint)
    assert plain.encoder == flipped.encoder
    assert [path.rpartition("/")[2] for path in plain.paths] == ["0.png", "1.png", "3.png", "4.png"]
    assert plain.paths == flipped.paths
    for i, path in enumerate(plain.paths):
        pixels = to_pixels(Image.open(path), predictor.preprocessing)[np.newaxis]
        expected, mirrored = predictor.features(pixels), predictor.features(pixels[:, :, ::-1])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(plain.array[i], expected[0], atol=scale * 2e-3)
        np.testing.assert_allclose(flipped.array[i], mirrored[0], atol=scale * 2e-3)
        assert np.abs(expected - mirrored).max() > scale * 0.01
    rows = pq.read_table(output / "features").to_pylist()
    assert [row["error"] and row["error"].partition(":")[0] for row in rows] == [None, None, "EmptyFile", None, None]
    assert rows[2]["features"] is None

    assert main(arguments) == 0
    assert "Nothing to do" in capfd.readouterr().out
    assert main(arguments[:-1]) == 2
    assert "flip is True there and False now" in capfd.readouterr().err

    Image.fromarray(generator.integers(0, 256, (70, 90, 3), np.uint8)).save(source / "2.png")
    assert main([*arguments, "--retry-errors"]) == 0
    assert len(open_features(str(output)).paths) == len(open_features(str(output / "features_flipped")).paths) == 5


def test_features_of_random_crops(tmp_path, tiny_checkpoint):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (70, 90, 3), np.uint8)
        Image.fromarray(noise).save(source / f"{i}.png")
    options = ["--encoder.checkpoint", str(tiny_checkpoint), "--crops", "2"]

    assert main([str(source), str(tmp_path / "a"), *options]) == 0
    assert main([str(source), str(tmp_path / "b"), *options, "--images-per-chunk", "1"]) == 0

    views = [open_features(str(tmp_path / "a" / f"features{view}")) for view in ("", "_crop_1", "_crop_2")]
    again = open_features(str(tmp_path / "b" / "features_crop_2"))
    assert views[0].paths == views[1].paths == views[2].paths == again.paths
    np.testing.assert_array_equal(views[2].array, again.array)
    for one, other in itertools.combinations(views, 2):
        assert np.abs(one.array - other.array).max(axis=(1, 2)).min() > 0.01 * np.abs(one.array).max()


def test_the_encoder_of_the_checkpoint_that_ships(tmp_path, make_images):
    output = tmp_path / "out"
    assert main([str(make_images(2)), str(output), "--encoder.checkpoint", "default"]) == 0
    store = open_features(str(output))
    assert store.fingerprint == weights_fingerprint(load_encoder(store.encoder, "default"))
    file = pq.ParquetFile(next((output / "features").glob("*.parquet")))
    values = file.metadata.row_group(0).column(file.schema.names.index("features"))
    assert "RLE_DICTIONARY" not in values.encodings  # it would cost three times the writing


def test_a_network_that_does_not_exist(tmp_path, make_images, capfd):
    assert main([str(make_images(1)), str(tmp_path / "out"), "--encoder.name", "efficientnet_lite9"]) == 2
    assert "efficientnet_lite9" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flag", "now"),
    [
        ("--encoder=resnet50", "--encoder.name"),
        ("--kind", "--encoder.kind"),
        ("--size", "--encoder.size"),
        ("--model", "--encoder.checkpoint"),
    ],
)
def test_flags_of_earlier_versions_are_refused_with_the_present_name(tmp_path, capsys, flag, now):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "out"), flag, "x"])
    old = flag.partition("=")[0]
    assert f"{old} is called {now} now: write {now}" in capsys.readouterr().err


def test_names_of_earlier_versions_in_a_settings_file(tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("encoder: resnet50\n")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), str(tmp_path / "out"), "--config", str(file)])
    assert "settings.yaml: encoder is called name in the group encoder now" in capsys.readouterr().err


def test_the_checkpoint_must_have_the_encoder_that_was_asked_for(tmp_path, tiny_checkpoint, make_images, capfd):
    asked = ["--encoder.checkpoint", str(tiny_checkpoint), "--encoder.name", "resnet50"]
    assert main([str(make_images(1)), str(tmp_path / "out"), *asked]) == 2
    assert "and resnet50 was asked for" in capfd.readouterr().err
