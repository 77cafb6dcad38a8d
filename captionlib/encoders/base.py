"""The one contract of all encoders: normalised images (B, 3, H, W) → features (B, N, D).

Shapes: B images, N positions, D feature width, h and w rows and columns of the last stage.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from captionlib.config import EncoderConfig


class Backbone(Protocol):
    """What an encoder needs of a network."""

    def grid(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → the last stage as (B, D, h, w), or as tokens (B, N, D)."""

    def pooled(self, grid: Tensor) -> Tensor:
        """`grid`'s output → the vector before the classifier (B, D)."""

    def logits(self, grid: Tensor) -> Tensor:
        """`grid`'s output → the classifier's output (B, classes)."""


class Encoder(nn.Module):
    """A backbone, and the choice of which of its outputs are the features.

    Args:
        backbone: an `nn.Module` that satisfies `Backbone`.
        config: `features` picks the output; the rest describes it.
    """

    def __init__(self, backbone: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → features (B, N, D) float."""
        grid = self.backbone.grid(images)
        if self.config.features == "pooled":
            return self.backbone.pooled(grid).unsqueeze(1)  # (B, 1, D)
        if self.config.features == "logits":
            return self.backbone.logits(grid).unsqueeze(1)  # (B, 1, classes)
        if grid.dim() == 4:
            return grid.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D)
        return grid
