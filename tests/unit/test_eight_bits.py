"""Compressed checkpoints: 8-bit integers worked by hand, the captions that they give, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from captionlib.captioners.from_features import Captioner
from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import (
    CONFIG,
    INT8_ENCODER,
    WEIGHTS,
    CheckpointError,
    add_int8_encoder,
    check_checkpoint,
    compress_weights,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    weights_fingerprint,
)
from captionlib.checkpoints.eight_bits import compress, decompress, to_integers
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder

PHOTOS = [Path(__file__).parents[1] / "photos" / f"{name}.jpg" for name in ("astronaut", "cat", "coffee", "rocket")]
HERE = Path("here.safetensors")


def config(directory: Path) -> dict[str, object]:
    return dict(json.loads((directory / CONFIG).read_text()))


# ---- arithmetic ----


def test_by_hand() -> None:
    # Row 1: 254 / 127 = 2; 254 / 2 = 127, -100 / 2 = -50, 2.8 / 2 = 1.4, rounded to 1. Row 2 is zero.
    integers, scale = to_integers(torch.tensor([[254.0, -100.0, 2.8], [0.0, 0.0, 0.0]]))
    assert (integers.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert integers.tolist() == [[127, -50, 1], [0, 0, 0]]
    assert scale.tolist() == [[2.0], [1.0]]
    restored = decompress({"decoder.x": integers, "decoder.x:scale": scale}, HERE)
    assert restored.keys() == {"decoder.x"}
    assert restored["decoder.x"].dtype == torch.float32
    assert restored["decoder.x"].tolist() == [[254.0, -100.0, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_element_changes_by_at_most_half_a_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = (torch.randn(64, 64) * torch.logspace(-4, 4, 64)[:, None]).to(dtype)  # rows of very different sizes
    stored = compress({"decoder.x": matrix})
    assert stored["decoder.x"].abs().amax(dim=1).tolist() == [127] * 64
    difference = (decompress(stored, HERE)["decoder.x"] - matrix.float()).abs()
    largest = matrix.float().abs().amax(dim=1, keepdim=True)
    assert bool((difference <= largest / 254 * (1 + 1e-5)).all())


def test_the_smallest_numbers() -> None:
    tiny = torch.full((1, 3), 1e-45)  # divided by 127, it is 0 in float32
    integers, scale = to_integers(tiny)
    assert (integers.tolist(), scale.tolist()) == ([[0, 0, 0]], [[1.0]])


def test_what_is_compressed() -> None:
    large = torch.ones(64, 64)
    kept = {
        "encoder.x": large,
        "encoder.eight": torch.ones(4, 4, dtype=torch.int8),
        "decoder.small": torch.ones(63, 64),
        "decoder.narrow": torch.ones(5000, 1),
        "decoder.vector": torch.ones(5000),
        "decoder.cube": torch.ones(16, 16, 16),
        "decoder.integers": torch.ones(64, 64, dtype=torch.int64),
    }
    changed = {"decoder.x": large, "detector.x": large, "decoder.tall": torch.ones(5000, 8)}
    stored = compress({**kept, **changed})
    assert stored.keys() == {*kept, *changed, *(f"{name}:scale" for name in changed)}
    assert all(stored[name] is value for name, value in kept.items())
    assert all(stored[name].dtype == torch.int8 for name in changed)
    again = compress(stored)
    assert again.keys() == stored.keys()
    assert all(again[name] is value for name, value in stored.items())
    restored = decompress(stored, HERE)
    assert list(restored) == [*kept, *changed]
    assert all(restored[name] is value for name, value in kept.items())
    assert compress({"other.x": large}, ("other.",)).keys() == {"other.x", "other.x:scale"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    matrix = torch.ones(64, 64)
    matrix[3, 4] = value
    with pytest.raises(ValueError, match=r"the weights decoder\.x are not finite"):
        compress({"decoder.x": matrix})


# ---- damage ----

MATRIX, SCALE = torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"decoder.x:scale": SCALE}, "holds decoder.x:scale and no decoder.x"),
        ({"decoder.x": MATRIX}, "decoder.x holds 8-bit integers and there is no decoder.x:scale"),
        ({"detector.x": MATRIX}, "detector.x holds 8-bit integers and there is no detector.x:scale"),
        (
            {"decoder.x": MATRIX, "decoder.x:scale": torch.ones(2)},
            r"decoder.x:scale is torch.float32 of shape \(2,\) instead of torch.float32 of shape \(2, 1\)",
        ),
        ({"decoder.x": MATRIX, "decoder.x:scale": torch.ones(3, 1)}, r"of shape \(3, 1\) instead of"),
        ({"decoder.x": MATRIX, "decoder.x:scale": SCALE.half()}, "is torch.float16 of shape"),
        ({"decoder.x": MATRIX, "decoder.x:scale": SCALE * math.nan}, "not finite or not above 0"),
        ({"decoder.x": MATRIX, "decoder.x:scale": SCALE * 0}, "not finite or not above 0"),
        ({"decoder.x": SCALE, "decoder.x:scale": SCALE}, "has a scale and is no matrix of 8-bit integers"),
        ({"decoder.x": MATRIX[0], "decoder.x:scale": SCALE}, "has a scale and is no matrix of 8-bit integers"),
    ],
)
def test_scales_that_do_not_fit(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"here\.safetensors is damaged \(.*{message}.*\): copy the checkpoint"):
        decompress(weights, HERE)


def test_a_checkpoint_whose_scales_do_not_fit(tiny_checkpoint: Path) -> None:
    compress_weights(tiny_checkpoint)
    name = "decoder.project.layers.0.weight"
    data = config(tiny_checkpoint)
    del data["fingerprint"]  # as of a checkpoint that another program has put together
    (tiny_checkpoint / CONFIG).write_text(json.dumps(data))
    weights = {key: value.clone() for key, value in load_file(tiny_checkpoint / WEIGHTS).items()}
    del weights[f"{name}:scale"]
    save_file(weights, tiny_checkpoint / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS} is damaged \({name} holds 8-bit integers and there is no"):
        load_checkpoint(tiny_checkpoint)


def test_a_damaged_checkpoint_is_not_compressed(tiny_checkpoint: Path) -> None:
    whole = (tiny_checkpoint / WEIGHTS).read_bytes()
    (tiny_checkpoint / WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="bytes instead of"):
        compress_weights(tiny_checkpoint)


# ---- checkpoints ----


def test_a_compressed_checkpoint_captions_as_before(tiny_checkpoint: Path) -> None:
    plain = load_checkpoint(tiny_checkpoint)
    expected = Predictor(plain, engine="torch").caption(PHOTOS)
    assert config(tiny_checkpoint)["format"] == 2
    files = sorted(path.name for path in tiny_checkpoint.iterdir())

    before, after = compress_weights(tiny_checkpoint)
    assert (tiny_checkpoint / WEIGHTS).stat().st_size == after < before
    assert sorted(path.name for path in tiny_checkpoint.iterdir()) == files
    assert config(tiny_checkpoint)["format"] == 3  # versions of the project that cannot read it refuse it
    check_checkpoint(tiny_checkpoint)
    compressed = load_checkpoint(tiny_checkpoint)
    assert compressed.fingerprint != plain.fingerprint
    assert compressed.weights.keys() == plain.weights.keys()
    for name, value in compressed.weights.items():
        assert value.dtype == torch.float32
        largest = plain.weights[name].abs().max()
        assert float((value - plain.weights[name]).abs().max()) <= (
            0 if name.startswith("encoder.") else float(largest) / 250
        )
    assert any(not value.equal(plain.weights[name]) for name, value in compressed.weights.items())

    found = Predictor.from_checkpoint(tiny_checkpoint, engine="torch").caption(PHOTOS)
    for (one,), (other,) in zip(found, expected, strict=True):
        assert one.text == other.text
        assert one.log_prob == pytest.approx(other.log_prob, abs=0.2)
    assert compress_weights(tiny_checkpoint) == (after, after)
    assert load_checkpoint(tiny_checkpoint).fingerprint == compressed.fingerprint


def test_the_encoder_stays_as_it_is(tiny_checkpoint: Path) -> None:
    add_int8_encoder(tiny_checkpoint, b"a graph")
    plain = load_checkpoint(tiny_checkpoint)
    compress_weights(tiny_checkpoint)
    compressed = load_checkpoint(tiny_checkpoint)
    assert compressed.int8_encoder == tiny_checkpoint / INT8_ENCODER
    assert compressed.int8_encoder.read_bytes() == b"a graph"
    stored = load_file(tiny_checkpoint / WEIGHTS)
    assert {value.dtype for name, value in stored.items() if name.startswith("encoder.")} == {torch.float16}
    fingerprints = []
    for checkpoint in (plain, compressed):
        encoder = build_encoder(checkpoint.model.encoder)
        load_weights(encoder, checkpoint.part("encoder"), "here")
        fingerprints.append(weights_fingerprint(encoder))
    assert fingerprints[0] == fingerprints[1]
    add_int8_encoder(tiny_checkpoint, b"another")
    assert config(tiny_checkpoint)["format"] == 3
    assert load_checkpoint(tiny_checkpoint).weights.keys() == compressed.weights.keys()


def test_saving_a_compressed_captioner_writes_float16_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    compress_weights(tiny_checkpoint)
    checkpoint = load_checkpoint(tiny_checkpoint)
    model = checkpoint.model
    decoder = build_decoder(model.decoder, model.encoder.feature_dim, len(checkpoint.vocabulary))
    captioner = Captioner(build_encoder(model.encoder), decoder)
    load_weights(captioner, checkpoint.weights, "here")
    save_checkpoint(tmp_path / "again", captioner, model, checkpoint.vocabulary)
    assert config(tmp_path / "again")["format"] == 2
    stored = load_file(tmp_path / "again" / WEIGHTS)
    assert stored.keys() == checkpoint.weights.keys()
    assert {value.dtype for value in stored.values()} == {torch.float16}
