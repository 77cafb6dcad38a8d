"""Any timm model as a backbone: `forward_features` is the grid, `forward_head` the rest."""

from __future__ import annotations

from torch import Tensor, nn

from captionlib.config import Preprocessing


class TimmBackbone(nn.Module):
    """A timm model, its feature map brought to (B, D, h, w) or (B, N, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def grid(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images)

    def pooled(self, grid: Tensor) -> Tensor:
        return self.network.forward_head(grid, pre_logits=True)

    def logits(self, grid: Tensor) -> Tensor:
        return self.network.forward_head(grid)


def build(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """A timm model by name, and the preprocessing of its default weights.

    Raises:
        ModuleNotFoundError: timm is not installed; the message names the extra.
        ValueError: timm has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a timm encoder needs the package timm, which is not installed: pip install 'captionlib[timm]'"
        ) from error
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}: timm.list_models('*{name}*') finds similar names")
    network = timm.create_model(name, pretrained=pretrained).eval()
    data = timm.data.resolve_model_data_config(network)
    return TimmBackbone(network), Preprocessing(
        size=data["input_size"][-1],
        mean=tuple(255 * value for value in data["mean"]),
        std=tuple(255 * value for value in data["std"]),
    )
