"""Encoders in 8-bit integers: near their floats by as much as 8 bits allow, and taken where they are there."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from captionlib.config import EncoderConfig, EngineKind, Preprocessing
from captionlib.encoders import Encoder, build_encoder, describe_encoder
from captionlib.engines.base import EncoderEngine
from captionlib.engines.build import build_engine
from captionlib.engines.onnx_export import ExportError, export_onnx
from captionlib.engines.openvino import OpenVinoEngine
from captionlib.engines.quantization import quantize_encoder, similarity
from captionlib.images.decode import decode_image
from captionlib.images.pixels import to_pixels

PHOTOS = sorted((Path(__file__).parents[2] / "photos").glob("*.jpg"))
PREPROCESSING = Preprocessing(size=8, mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def means(factor: float = 1.0) -> Encoder:
    """Of each channel over quarters of the image, times a factor."""
    convolution = nn.Conv2d(3, 3, 4, stride=4, bias=False)
    weight = torch.zeros(3, 3, 4, 4)
    for channel in range(3):
        weight[channel, channel] = factor / 16
    convolution.weight = nn.Parameter(weight)
    return Encoder(convolution, EncoderConfig(kind="vectors", name="means", preprocessing=PREPROCESSING)).eval()


def test_worked_by_hand(tmp_path: Path) -> None:
    quantize_encoder(means(), PREPROCESSING, list(PIXELS), tmp_path / "graph.onnx")
    features = OpenVinoEngine(tmp_path / "graph.onnx", 1)(PIXELS).numpy()  # (40, 4, 3)
    quarters = PIXELS.reshape(40, 2, 4, 2, 4, 3).astype(np.float64).mean(axis=(2, 4)).reshape(40, 4, 3)
    expected = (quarters - PREPROCESSING.mean) / PREPROCESSING.std
    # All channels share a scale: from the darkest red to the brightest, and what comes in has such steps, too.
    coming = (255 - 10) / 2 - min(-10 / 2, -20 / 3, -30 / 4)
    going = expected.max() - min(0, expected.min())
    assert np.abs(features - expected).max() <= (coming + going) / 255 / 2 * 1.01
    assert np.abs(features - expected).max() > 0
    assert similarity(means(), PREPROCESSING, tmp_path / "graph.onnx", list(PIXELS)) > 0.9999


def test_efficientnet_on_photos(tmp_path: Path) -> None:
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0")
    encoder = build_encoder(config, pretrained=True)
    pixels = [to_pixels(decode_image(path.read_bytes()).image, config.preprocessing) for path in PHOTOS]
    disabled = logging.root.manager.disable
    quantize_encoder(encoder, config.preprocessing, pixels, tmp_path / "graph.onnx")
    assert logging.root.manager.disable == disabled
    assert 0.95 < similarity(encoder, config.preprocessing, tmp_path / "graph.onnx", pixels) < 1
    export_onnx(encoder, config.preprocessing, tmp_path / "float.onnx")
    assert (tmp_path / "graph.onnx").stat().st_size < 0.3 * (tmp_path / "float.onnx").stat().st_size


def test_without_photos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="measured on photos, and none are given"):
        quantize_encoder(means(), PREPROCESSING, [], tmp_path / "graph.onnx")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"onnxruntime is not installed: pip install 'captionlib\[quantize\]'"
    ):
        quantize_encoder(means(), PREPROCESSING, list(PIXELS), tmp_path / "graph.onnx")


# ---- which graph an engine takes ----


def engine_of(kind: EngineKind, int8_graph: Path | None) -> EncoderEngine:
    return build_engine(
        means(),
        PREPROCESSING,
        fingerprint="f",
        device=torch.device("cpu"),
        num_threads=1,
        kind=kind,
        int8_graph=int8_graph,
    )


@pytest.fixture
def doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph whose features are twice the encoder's, so that it is known when it runs."""
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    export_onnx(means(2.0), PREPROCESSING, tmp_path / "doubled.onnx")
    return tmp_path / "doubled.onnx"


@pytest.mark.parametrize(("kind", "factor"), [("auto", 2), ("int8", 2), ("openvino", 1), ("torch", 1)])
def test_integers_where_they_are_there_and_wanted(doubled: Path, kind: EngineKind, factor: int) -> None:
    expected = engine_of("torch", None)(PIXELS) * factor
    torch.testing.assert_close(engine_of(kind, doubled)(PIXELS), expected, rtol=1e-3, atol=1e-3)


def test_integers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="no encoder in 8-bit integers: python -m jobs.quantize makes one"):
        engine_of("int8", None)


def test_a_damaged_graph(doubled: Path) -> None:
    doubled.write_bytes(doubled.read_bytes()[:-40])
    with pytest.raises(ExportError, match=r"OpenVINO cannot run .*doubled\.onnx: "):
        engine_of("int8", doubled)
    with pytest.warns(UserWarning, match=r"PyTorch runs the encoder.*doubled\.onnx"):
        assert engine_of("auto", doubled).name.startswith("torch")
