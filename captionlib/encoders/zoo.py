"""Builds and describes encoders by their settings; one table of kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from captionlib.config import EncoderConfig, FeatureKind, Preprocessing
from captionlib.encoders import efficientnet_lite, timm_backbone, torchvision_backbone
from captionlib.encoders.base import Encoder
from captionlib.errors import UserError

Builder = Callable[[str, FeatureKind, bool, "int | None"], tuple[nn.Module, Preprocessing]]

ENCODER_KINDS: dict[str, Builder] = {
    "efficientnet_lite": efficientnet_lite.build,
    "torchvision": torchvision_backbone.build,
    "timm": timm_backbone.build,
}
"""Kind → function (name, features, pretrained, size) → (backbone, the preprocessing that its weights expect)."""
SMALLEST_SIZE = 32
"""Smallest side in pixels, because most networks halve their input five times."""


def build_encoder(config: EncoderConfig, *, pretrained: bool = False) -> Encoder:
    """Build the network that `config` describes, in evaluation mode.

    Args:
        config: complete settings, including preprocessing and dimensions (see `describe_encoder`).
        pretrained: load ImageNet weights; not needed for the weights of a checkpoint.

    Raises:
        UserError: the kind or name is unknown, or weights could not be downloaded; the message states what to do.
        ModuleNotFoundError: a package is missing; the message names the extra.
    """
    build = _builder(config.kind)
    backbone, _ = build(config.name, config.features, pretrained, config.preprocessing.size)
    return Encoder(backbone, config).eval()


def describe_encoder(kind: str, name: str, features: FeatureKind = "grid", size: int | None = None) -> EncoderConfig:
    """Return the complete settings of a network known by name: its preprocessing, and the shape of its features.

    Args:
        size: side of the input in pixels; default: the size that the weights were trained with.

    Raises:
        UserError: as `build_encoder`, or the size is smaller than `SMALLEST_SIZE`.
        ModuleNotFoundError: as `build_encoder`.
    """
    if size is not None and size < SMALLEST_SIZE:
        raise UserError(f"an encoder sees at least {SMALLEST_SIZE} x {SMALLEST_SIZE} pixels, got size {size}")
    build = _builder(kind)
    try:
        with torch.device("meta"):  # computes only shapes, without initialising weights
            backbone, preprocessing = build(name, features, False, size)
    except NotImplementedError:  # RegNet computes its widths with tensors, which must not be meta tensors
        backbone, preprocessing = build(name, features, False, size)
    draft = EncoderConfig(kind=kind, name=name, features=features, preprocessing=preprocessing)  # type: ignore[arg-type]
    encoder = Encoder(backbone.to("meta"), draft).eval()
    with torch.inference_mode():
        shape = encoder(torch.zeros(1, 3, preprocessing.size, preprocessing.size, device="meta")).shape
    return replace(draft, num_positions=int(shape[1]), feature_dim=int(shape[2]))


def resized(config: EncoderConfig, size: int) -> EncoderConfig:
    """Return the settings of the same network, with the same weights, for images of another size.

    Raises:
        UserError, ModuleNotFoundError: as `build_encoder`.
    """
    other = describe_encoder(config.kind, config.name, config.features, size)
    return replace(config, preprocessing=replace(config.preprocessing, size=size), num_positions=other.num_positions)


def _builder(kind: str) -> Builder:
    if kind == "vectors":
        raise UserError(
            "features of the kind vectors were given ready-made, and no network here makes them of images: "
            "say which encoder made them, or caption such features"
        )
    if kind not in ENCODER_KINDS:
        raise UserError(f"unknown kind of encoder {kind!r}; known: {', '.join(ENCODER_KINDS)}")
    return ENCODER_KINDS[kind]
