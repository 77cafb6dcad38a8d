"""Engines: they agree, the exported graph is cached and mended, and what cannot be exported still runs."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captionlib.config import EncoderConfig, EngineKind, Preprocessing
from captionlib.encoders import Encoder, build_encoder, describe_encoder
from captionlib.encoders.efficientnet_lite import EfficientNetLite
from captionlib.engines import build
from captionlib.engines.base import EncoderEngine
from captionlib.engines.build import build_engine
from captionlib.engines.onnx_export import ExportError, export_onnx
from captionlib.engines.openvino import OpenVinoEngine
from captionlib.engines.torch_engine import TorchEngine

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(size=8, mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


class Mean(nn.Module):
    """A network whose output can be worked out: the mean of each channel over quarters of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 4)  # (B, 3, 2, 2)


class Strange(nn.Module):
    """An operation that ONNX has not."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images)


class BatchOfTwo(nn.Module):
    """What tracing writes down wrongly: the size of the batch as a number."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(len(images), 3, 16, 4)


def make(network: nn.Module, name: str = "toy") -> Encoder:
    return Encoder(network, EncoderConfig(kind="vectors", name=name, preprocessing=PREPROCESSING))


def engine_of(encoder: Encoder, kind: EngineKind = "auto", fingerprint: str = "f") -> EncoderEngine:
    return build_engine(encoder, PREPROCESSING, fingerprint=fingerprint, device=CPU, num_threads=1, kind=kind)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def graphs(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.onnx"))


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_worked_by_hand(kind: EngineKind) -> None:
    features = engine_of(make(Mean()), kind)(PIXELS)
    assert features.shape == (5, 4, 3)
    assert features.dtype == torch.float32
    quarter = PIXELS[1, :4, 4:].astype(np.float64).mean(axis=(0, 1))  # top right: position 1
    expected = (quarter - np.array([10, 20, 30])) / np.array([2, 3, 4])
    np.testing.assert_allclose(features[1, 1].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_pixels_in_any_memory_layout(kind: EngineKind) -> None:
    engine = engine_of(make(Mean()), kind)
    mirrored = PIXELS[:, :, ::-1]
    torch.testing.assert_close(engine(mirrored), engine(mirrored.copy()))


class Transformer(nn.Module):
    """PyTorch's attention takes a short cut in evaluation, which ONNX does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.layer(self.patches(images).flatten(2).transpose(1, 2))
        return tokens  # (B, 16, 16)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6())


@pytest.mark.parametrize("network", [Transformer, convolution, EfficientNetLite])
def test_engines_agree(network: Callable[[], nn.Module]) -> None:
    encoder = make(network().eval())
    engines = [engine_of(encoder, "openvino"), engine_of(encoder, "torch")]
    for size in (1, 5):
        fast, eager = (engine(PIXELS[:size]) for engine in engines)
        torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-3 * float(eager.abs().max()))


def test_convolutions_pad_by_themselves(tmp_path: Path) -> None:
    """A padding of its own before a convolution costs a pass over the data."""
    import openvino

    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", size=64)
    export_onnx(build_encoder(config), config.preprocessing, tmp_path / "graph.onnx")
    model = openvino.Core().compile_model(str(tmp_path / "graph.onnx"), "CPU").get_runtime_model()
    operations = {node.get_rt_info()["layerType"].astype(str) for node in model.get_ops()}
    assert "Convolution" in operations
    assert "Pad" not in operations


# ---- the cache ----


def count_exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    exports: list[str] = []

    def counted(encoder: Encoder, preprocessing: Preprocessing, path: Path) -> None:
        exports.append(encoder.config.name)
        export_onnx(encoder, preprocessing, path)

    monkeypatch.setattr(build, "export_onnx", counted)
    return exports


def test_exported_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = count_exports(monkeypatch)
    first, second = engine_of(make(Mean())), engine_of(make(Mean()))
    assert exports == ["toy"]
    assert len(graphs(cache)) == 1
    torch.testing.assert_close(first(PIXELS), second(PIXELS))


def test_what_makes_another_graph(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = count_exports(monkeypatch)
    engine_of(make(Mean()))
    engine_of(make(Mean()), fingerprint="g")
    engine_of(make(Mean(), "other"))
    build_engine(make(Mean()), Preprocessing(size=4), fingerprint="f", device=CPU, num_threads=1)
    assert len(exports) == len(graphs(cache)) == 4


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None])
def test_a_damaged_graph_is_made_anew(cache: Path, content: bytes | None) -> None:
    expected = engine_of(make(Mean()))(PIXELS)
    (graph,) = graphs(cache)
    graph.write_bytes(graph.read_bytes()[:-40] if content is None else content)
    torch.testing.assert_close(engine_of(make(Mean()))(PIXELS), expected)
    assert graphs(cache) == [graph]
    OpenVinoEngine(graph, 1)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "file"))
    engine = engine_of(make(Mean()), "openvino")
    assert engine(PIXELS).shape == (5, 4, 3)


def test_many_at_once(cache: Path) -> None:
    engines: list[EncoderEngine] = []
    threads = [threading.Thread(target=lambda: engines.append(engine_of(make(Mean()), "openvino"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 6
    assert len(graphs(cache)) == 1
    assert os.listdir(cache / "onnx") == [graphs(cache)[0].parent.name]  # nothing half-made is left


# ---- what cannot be had ----


@pytest.mark.parametrize("missing", ["openvino", "onnx"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.warns(
        UserWarning, match=rf"PyTorch runs the encoder.*: {missing} is not installed: pip install 'captionlib\[cpu\]'"
    ):
        engine = engine_of(make(Mean()))
    assert engine.name.startswith("torch")
    assert engine(PIXELS).shape == (5, 4, 3)
    with pytest.raises(ModuleNotFoundError, match=rf"{missing} is not installed: pip install 'captionlib\[cpu\]'"):
        engine_of(make(Mean()), "openvino")


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Strange(), "cannot be exported to ONNX: .*bessel_j0"), (BatchOfTwo(), "does not compute what PyTorch does")],
)
def test_what_cannot_be_exported(
    network: nn.Module, reason: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match=f"PyTorch runs the encoder.*{reason}"):
        engine = engine_of(make(network))
    assert engine.name.startswith("torch")
    assert len(engine(PIXELS)) == 5
    with pytest.raises(ExportError, match=reason):
        engine_of(make(network), "openvino")
    assert graphs(cache) == []
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_openvino_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto, helper, save

    def unknown(encoder: Encoder, preprocessing: Preprocessing, path: Path) -> None:
        pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4, 3])
        node = helper.make_node("Wonder", ["pixels"], ["features"], domain="strange")
        graph = helper.make_graph([node], "graph", [pixels], [features])
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("strange", 1)]
        save(helper.make_model(graph, opset_imports=opsets), path)

    monkeypatch.setattr(build, "export_onnx", unknown)
    with pytest.raises(ExportError, match=r"OpenVINO cannot run toy: .*strange\.Wonder$"):
        engine_of(make(Mean()), "openvino")


def test_a_graph_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(encoder: Encoder, preprocessing: Preprocessing, path: Path) -> None:
        export_onnx(make(nn.Sequential(Mean(), nn.Hardtanh())), preprocessing, path)

    monkeypatch.setattr(build, "export_onnx", wrong)
    with pytest.raises(ExportError, match="does not compute what PyTorch does"):
        engine_of(make(Mean()), "openvino")


def test_exporting_leaves_no_trace() -> None:
    encoder = make(Mean())
    before = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), list(warnings.filters)
    engine_of(encoder, "openvino")
    assert (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), list(warnings.filters)) == before


def test_torch_keeps_the_encoder_in_evaluation_mode() -> None:
    encoder = make(nn.Sequential(nn.Dropout(0.9), Mean())).train()
    engine = TorchEngine(encoder, PREPROCESSING, CPU)
    torch.testing.assert_close(engine(PIXELS), engine(PIXELS))
    assert not engine(PIXELS).requires_grad
