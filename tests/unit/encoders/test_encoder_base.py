"""The encoders' contract, with networks small enough to be worked by hand: shapes, order of positions, freezing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captionlib.config import EncoderConfig
from captionlib.encoders import Encoder


class Fixed(nn.Module):
    """Gives what it was made with."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        return self.output


class Staged(nn.Module):
    """Three stages with batch norm and dropout, under `network.` as EfficientNet-Lite and timm have them."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Module()
        self.network.stem = _stage(3, 4)
        self.network.blocks = nn.Sequential(_stage(4, 4), _stage(4, 4))
        self.network.head = _stage(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.head(self.network.blocks(self.network.stem(images)))  # type: ignore[operator]


def _stage(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.Dropout(0.5))


def encoder_of(backbone: nn.Module) -> Encoder:
    return Encoder(backbone, EncoderConfig(kind="vectors", name="toy"))


def test_a_map_becomes_positions_row_by_row() -> None:
    grid = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4).float()  # (B, D, h, w)
    features = encoder_of(Fixed(grid))(torch.zeros(2, 3, 8, 8))
    assert features.shape == (2, 8, 3)
    assert torch.equal(features[1, 4 * 1 + 2], grid[1, :, 1, 2])  # row 1, column 2


def test_tokens_stay_as_they_are() -> None:
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(encoder_of(Fixed(tokens))(torch.zeros(2, 3, 8, 8)), tokens)


def test_a_vector_becomes_one_position() -> None:
    vectors = torch.randn(2, 7)
    assert torch.equal(encoder_of(Fixed(vectors))(torch.zeros(2, 3, 8, 8)), vectors[:, None])


# ---- fine-tuning ----


def trained(encoder: Encoder) -> set[str]:
    """The stages of which any parameter is trained."""
    return {
        name.removeprefix("backbone.network.").rsplit(".", 2)[0]
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("stem", {"stem", "blocks.0", "blocks.1", "head"}),
        ("blocks", {"blocks.0", "blocks.1", "head"}),
        ("blocks.1", {"blocks.1", "head"}),
        ("head", {"head"}),
        (None, set()),
    ],
)
def test_what_is_trained(stage: str | None, expected: set[str]) -> None:
    encoder = encoder_of(Staged())
    encoder.freeze_before(stage)
    assert trained(encoder) == expected


def test_frozen_parts_stay_in_evaluation_mode() -> None:
    encoder = encoder_of(Staged()).train()
    encoder.freeze_before("blocks.1")
    for _ in range(2):
        modes = {name: m.training for name, m in encoder.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.Dropout))}
        assert modes == {
            "backbone.network.stem.1": False,
            "backbone.network.stem.2": False,
            "backbone.network.blocks.0.1": False,
            "backbone.network.blocks.0.2": False,
            "backbone.network.blocks.1.1": True,
            "backbone.network.blocks.1.2": True,
            "backbone.network.head.1": True,
            "backbone.network.head.2": True,
        }
        encoder.eval()
        assert not any(module.training for module in encoder.modules())
        encoder.train()


def test_a_training_step_changes_what_is_trained_and_nothing_else() -> None:
    torch.manual_seed(0)
    encoder = encoder_of(Staged()).train()
    encoder.freeze_before("blocks.1")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    encoder(torch.randn(4, 3, 2, 2)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("backbone.network.blocks.1", "backbone.network.head")) for name in changed)
    assert {"backbone.network.blocks.1.1.running_mean", "backbone.network.head.0.weight"} <= changed


@pytest.mark.parametrize("stage", ["layer4", "block", "", "blocks.2"])
def test_a_stage_that_is_not_there(stage: str) -> None:
    with pytest.raises(ValueError, match=f"toy has no stage '{stage}'; it has stem, blocks.0, blocks.1, head"):
        encoder_of(Staged()).freeze_before(stage)
