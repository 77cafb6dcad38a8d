"""The contract of all encoders: normalised images (B, 3, H, W) → features (B, N, D).

Shapes: B images, N positions, D feature width, h and w rows and columns of the last stage.
"""

from __future__ import annotations

from torch import Tensor, nn

from captionlib.config import EncoderConfig
from captionlib.errors import UserError


class Encoder(nn.Module):
    """A network up to the layer that gives the features, with its settings.

    Args:
        backbone: normalised images (B, 3, H, W) → a feature map (B, D, h, w), tokens (B, N, D) or one vector per
            image (B, D).
        config: description of the backbone, as made by `captionlib.encoders.describe_encoder`.
    """

    def __init__(self, backbone: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, H, W) → features (B, N, D) float; positions are in row-major order."""
        features: Tensor = self.backbone(images)
        if features.dim() == 4:
            return features.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, N, D)
        if features.dim() == 2:
            return features.unsqueeze(1)  # (B, D) -> (B, 1, D)
        return features

    def freeze_before(self, stage: str | None) -> None:
        """Freeze everything before a stage, so that only this stage and later ones are trained.

        Frozen parts stay in evaluation mode whatever `train` is called with, so that batch norm keeps its statistics
        and the frozen part computes the same in training and in captioning.

        Args:
            stage: a submodule of the network, such as `layer4` of a ResNet, `Mixed_7a` of InceptionV3 or `blocks.12` of
                EfficientNet-Lite; None freezes everything.

        Raises:
            UserError: the network has no such stage; the message lists some.
        """
        parameters = [(name.removeprefix("network."), p) for name, p in self.backbone.named_parameters()]
        names = [name for name, _ in parameters]
        inside = [i for i, name in enumerate(names) if stage is not None and name.startswith(f"{stage}.")]
        if stage is not None and not inside:
            stages = dict.fromkeys(_stage(name) for name in names)
            raise UserError(f"{self.config.name} has no stage {stage!r}; it has {', '.join(stages)}")
        # Networks define their parts in the order in which they run.
        for _, parameter in parameters[: inside[0] if inside else None]:
            parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode of all parts that are not frozen."""
        super().train(mode)
        for module in self.backbone.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


def _stage(parameter: str) -> str:
    """`layer4.0.conv1.weight` → `layer4`; `features.3.conv.weight` → `features.3`."""
    first, second, *_ = [*parameter.split("."), ""]
    return f"{first}.{second}" if second.isdigit() and first in ("features", "blocks", "layers") else first
