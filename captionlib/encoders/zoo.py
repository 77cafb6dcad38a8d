"""From an encoder's settings to the network: one table of kinds, one function that builds, one that describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from captionlib.config import EncoderConfig, FeatureKind, Preprocessing
from captionlib.encoders import efficientnet_lite, timm_backbone, torchvision_backbone
from captionlib.encoders.base import Encoder


class _EfficientNetLiteBackbone(nn.Module):
    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        self.network = efficientnet_lite.EfficientNetLite(name)
        if pretrained:
            efficientnet_lite.load_imagenet_weights(self.network, name)

    def grid(self, images: Tensor) -> Tensor:
        return self.network(images)

    def pooled(self, grid: Tensor) -> Tensor:
        return grid.mean(dim=(2, 3))

    def logits(self, grid: Tensor) -> Tensor:
        return self.network.logits(grid)


def _efficientnet_lite(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    if name not in efficientnet_lite.VARIANTS:
        raise ValueError(f"no EfficientNet-Lite is named {name!r}; known: {', '.join(efficientnet_lite.VARIANTS)}")
    # (value - 127) / 128, Preprocessing's default, is what the published weights were trained with.
    return _EfficientNetLiteBackbone(name, pretrained), Preprocessing(size=efficientnet_lite.VARIANTS[name].size)


ENCODER_KINDS: dict[str, Callable[[str, bool], tuple[nn.Module, Preprocessing]]] = {
    "efficientnet_lite": _efficientnet_lite,
    "torchvision": torchvision_backbone.build,
    "timm": timm_backbone.build,
}
"""Kind → function (name, pretrained) → (backbone, the preprocessing that its weights expect)."""


def build_encoder(config: EncoderConfig, *, pretrained: bool = False) -> Encoder:
    """The network that `config` describes, in evaluation mode.

    Args:
        config: taken as it is, its preprocessing and dimensions included (see `describe_encoder`).
        pretrained: load ImageNet weights. A checkpoint brings its own, so loading one needs none.

    Raises:
        ValueError: an unknown kind or name.
        ModuleNotFoundError: a package is missing; the message names the extra.
    """
    if config.kind not in ENCODER_KINDS:
        raise ValueError(
            f"features of kind {config.kind!r} have no network of ours; encoders: {', '.join(ENCODER_KINDS)}"
        )
    backbone, _ = ENCODER_KINDS[config.kind](config.name, pretrained)
    return Encoder(backbone, config).eval()


def describe_encoder(kind: str, name: str, features: FeatureKind = "grid", size: int | None = None) -> EncoderConfig:
    """The full settings of a network known by name: its preprocessing, and its features' shape from a dry run.

    Args:
        size: side of the input in pixels, where it is to differ from what the weights were trained with.
    """
    if kind not in ENCODER_KINDS:
        raise ValueError(f"unknown kind of encoder {kind!r}; known: {', '.join(ENCODER_KINDS)}")
    backbone, preprocessing = ENCODER_KINDS[kind](name, False)
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    draft = EncoderConfig(kind=kind, name=name, features=features, preprocessing=preprocessing)  # type: ignore[arg-type]
    encoder = Encoder(backbone, draft).eval()
    with torch.inference_mode():
        shape = encoder(torch.zeros(1, 3, preprocessing.size, preprocessing.size)).shape
    return replace(draft, num_positions=int(shape[1]), feature_dim=int(shape[2]))
