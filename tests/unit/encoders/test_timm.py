"""timm's models as encoders: which axis is which, which tokens are places, and what happens without the hub."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captionlib.encoders import build_encoder, describe_encoder
from captionlib.encoders.timm_backbone import TimmBackbone


class Network(nn.Module):
    """What timm's models have in common."""

    def __init__(self, output: Any, **attributes: Any) -> None:
        super().__init__()
        self.output = output
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward_features(self, images: Tensor) -> Any:
        return self.output

    def forward_head(self, grid: Tensor, pre_logits: bool = False) -> Tensor:
        return grid.flatten(1)[:, : 3 if pre_logits else 2]

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


GRID = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
TOKENS = torch.arange(2 * 6 * 3).reshape(2, 6, 3).float()


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Network(GRID), GRID),
        (Network(GRID, output_fmt="NCHW"), GRID),
        (Network(GRID.permute(0, 2, 3, 1), output_fmt="NHWC"), GRID),
        (Network(TOKENS), TOKENS),
        (Network(TOKENS, num_prefix_tokens=0, cls_token=GRID), TOKENS),
        (Network(TOKENS, num_prefix_tokens=5), TOKENS[:, 5:]),
        (Network(TOKENS, cls_token=GRID), TOKENS[:, 1:]),
    ],
)
def test_the_grid(network: nn.Module, expected: Tensor) -> None:
    assert torch.equal(TimmBackbone(network, "grid")(torch.zeros(2, 3, 8, 8)), expected)


def test_pooled_and_logits() -> None:
    images = torch.zeros(2, 3, 8, 8)
    assert TimmBackbone(Network(GRID), "pooled")(images).shape == (2, 3)
    assert TimmBackbone(Network(GRID), "logits")(images).shape == (2, 2)


def test_a_network_of_several_branches() -> None:
    with pytest.raises(ValueError, match="Network has no single last stage: take features of the kind pooled"):
        TimmBackbone(Network([GRID, TOKENS]), "grid")(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "size", "positions", "width"),
    [
        ("test_resnet", None, 25, 96),
        ("test_efficientnet", 64, 4, 256),
        ("test_convnext", 64, 4, 64),
        ("test_mambaout", 64, 4, 64),
        ("test_vit", 64, 16, 64),  # a class token is left out
        ("vit_tiny_patch16_224", 64, 16, 192),
        ("vit_small_patch14_reg4_dinov2", 56, 16, 384),  # a class token and four registers are
        ("swin_tiny_patch4_window7_224", 64, 4, 768),
    ],
)
def test_models(name: str, size: int | None, positions: int, width: int) -> None:
    config = describe_encoder("timm", name, size=size)
    assert (config.num_positions, config.feature_dim) == (positions, width)
    side = config.preprocessing.size
    assert size in (None, side)
    encoder = build_encoder(config)
    with torch.inference_mode():
        assert encoder(torch.randn(2, 3, side, side)).shape == (2, positions, width)


def test_preprocessing_is_that_of_the_weights() -> None:
    preprocessing = describe_encoder("timm", "test_vit").preprocessing
    assert (preprocessing.size, preprocessing.mean, preprocessing.std) == (160, (127.5,) * 3, (127.5,) * 3)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"timm has no model 'resnet19': timm\.list_models\('\*resnet19\*'\)"):
        describe_encoder("timm", "resnet19")


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'captionlib\[timm\]'"):
        describe_encoder("timm", "test_vit")


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    config = describe_encoder("timm", "test_vit", size=64)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(ValueError, match=r"weights of test_vit could not be downloaded \(no route\)") as caught:
        build_encoder(config, pretrained=True)
    assert "~/.cache/huggingface" in str(caught.value)
    assert "pip install 'captionlib[train]'" in str(caught.value)
