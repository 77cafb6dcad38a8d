"""Encoders against their libraries: networks as torchvision's and timm's own tools cut them; engines on real weights.

Networks have random weights, the same on both sides, and batch norm's statistics come from noise: with those of a
fresh network so little of an image gets through that anything would be equal. EfficientNet-Lite has its published
weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from captionlib.captioners.from_features import Captioner
from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import save_checkpoint, weights_fingerprint
from captionlib.config import DecoderConfig, EncoderConfig, FeatureKind, ModelConfig, Preprocessing
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.engines.build import build_engine
from captionlib.images.decode import decode_image
from captionlib.images.pixels import normalize, to_pixels
from captionlib.vocabulary import Vocabulary

pytestmark = pytest.mark.parity

PHOTOS = [Path(__file__).parents[1] / "photos" / f"{name}.jpg" for name in ("astronaut", "cat", "coffee", "rocket")]


def pixels_of_photos(preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([to_pixels(decode_image(path.read_bytes()).image, preprocessing) for path in PHOTOS])


def settle_batch_norm(network: nn.Module, size: int) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(torch.randn(2, 3, size, size))
    network.eval()


# ---- EfficientNet-Lite and timm ----


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_that_of_timm(number: int) -> None:
    import timm

    config = describe_encoder("efficientnet_lite", f"efficientnet_lite{number}")
    own = build_encoder(replace(config, features="logits"), pretrained=True).state_dict()
    theirs = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), own.values(), strict=True)))  # other names, the same order
    images = normalize(torch.from_numpy(pixels_of_photos(config.preprocessing)[:4]), config.preprocessing)
    with torch.inference_mode():
        grid = theirs.forward_features(images)  # (B, D, h, w)
        for kind, expected in (
            ("grid", grid.flatten(2).transpose(1, 2)),
            ("pooled", theirs.forward_head(grid, pre_logits=True).unsqueeze(1)),
            ("logits", theirs(images).unsqueeze(1)),
        ):
            encoder = build_encoder(replace(config, features=kind))  # type: ignore[arg-type]
            encoder.load_state_dict({name: own[name] for name in encoder.state_dict()})
            torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)
    assert config.feature_dim == grid.shape[1]
    assert config.num_positions == grid.shape[2] * grid.shape[3]


def test_the_weights_know_a_cat() -> None:
    """Of ImageNet's 1,000 classes, 281 to 285 are house cats."""
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", "logits")
    encoder = build_encoder(config, pretrained=True)
    images = normalize(torch.from_numpy(pixels_of_photos(config.preprocessing)), config.preprocessing)
    with torch.inference_mode():
        assert 281 <= int(encoder(images)[1, 0].argmax()) <= 285


# ---- torchvision ----

# Network, side of the input, and the nodes of torchvision's own graph at the grid and before the last linear layer.
NODES = [
    ("alexnet", 64, "features", "classifier.5"),
    ("convnext_tiny", 32, "features", "classifier.1"),
    ("densenet121", 64, "relu", "flatten"),
    ("efficientnet_b0", 64, "features", "classifier.0"),
    ("googlenet", 64, "inception5b.cat", "dropout"),
    ("inception_v3", 96, "Mixed_7c.cat_2", "flatten"),
    ("maxvit_t", 224, "blocks.3.layers.1", "classifier.4"),
    ("mnasnet0_5", 64, "layers", "classifier.0"),
    ("mobilenet_v2", 64, "features", "classifier.0"),
    ("mobilenet_v3_small", 64, "features", "classifier.2"),
    ("regnet_y_400mf", 64, "trunk_output", "flatten"),
    ("resnet18", 64, "layer4", "flatten"),
    ("shufflenet_v2_x0_5", 64, "conv5", "mean"),
    ("squeezenet1_1", 64, "features", None),
    ("swin_t", 64, "permute", "flatten"),
    ("vit_b_32", 64, "encoder", "getitem_5"),
]


@pytest.mark.parametrize(("name", "size", "grid_node", "pooled_node"), NODES)
def test_torchvision(name: str, size: int, grid_node: str, pooled_node: str | None) -> None:
    torch.manual_seed(0)
    config = describe_encoder("torchvision", name, size=size)
    network = build_network(name, config)
    settle_batch_norm(network, size)
    images = torch.randn(2, 3, size, size)
    nodes = {grid_node: "grid"} | ({} if pooled_node is None else {pooled_node: "pooled"})
    with torch.inference_mode():
        expected: dict[str, Tensor] = create_feature_extractor(network, nodes)(images)
        expected["logits"] = network(images)
        grid = expected["grid"]
        # A vision transformer's class token comes first, and is no place in the image.
        expected["grid"] = grid[:, 1:] if grid.dim() == 3 else grid.flatten(2).transpose(1, 2)
        expected.setdefault("pooled", expected["grid"].mean(dim=1))
        for kind in ("grid", "pooled", "logits"):
            encoder = build_encoder(replace(config, features=kind))
            missing, _ = encoder.backbone.load_state_dict(network.state_dict(), strict=False)
            assert missing == []  # all have the names that torchvision gave them
            found = encoder(images)
            wanted = expected[kind] if kind == "grid" else expected[kind].unsqueeze(1)
            assert float(wanted.abs().max()) > 1e-3
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert (config.num_positions, config.feature_dim) == expected["grid"].shape[1:]


def build_network(name: str, config: EncoderConfig) -> nn.Module:
    """The network as torchvision builds it."""
    options: dict[str, Any] = {  # type: ignore[assignment]
        "vit_b_32": {"image_size": config.preprocessing.size},
        "inception_v3": {"init_weights": False, "aux_logits": False},
        "googlenet": {"init_weights": False, "aux_logits": False},
    }.get(name, {})
    network: nn.Module = models.get_model(name, **options)
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # a vision transformer's logits begin at 0
            nn.init.normal_(module.weight)
    return network


def test_inception_sees_what_torchvision_shows_it() -> None:
    """torchvision's weights come with ImageNet's statistics and a conversion inside the network."""
    torch.manual_seed(0)
    network = models.inception_v3(init_weights=False, aux_logits=False, transform_input=True)
    settle_batch_norm(network, 96)
    config = describe_encoder("torchvision", "inception_v3", "logits", size=96)
    encoder = build_encoder(config).double()
    encoder.backbone.load_state_dict(network.state_dict())
    pixels = torch.from_numpy(pixels_of_photos(config.preprocessing)[:2]).double()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (config.preprocessing.mean, config.preprocessing.std))
    preset = models.Inception_V3_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        ours = encoder(((pixels - mean) / std).permute(0, 3, 1, 2))[:, 0]
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (preset.mean, preset.std))
        theirs = network.double()(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, theirs)


# ---- timm ----


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("test_vit", 64),
        ("vit_small_patch14_reg4_dinov2", 56),
        ("swin_tiny_patch4_window7_224", 64),
        ("test_mambaout", 64),
        ("test_convnext", 64),
        ("test_resnet", 64),
    ],
)
def test_timm(name: str, size: int) -> None:
    torch.manual_seed(0)
    config = describe_encoder("timm", name, size=size)
    encoder = build_encoder(config)
    settle_batch_norm(encoder, size)
    images = torch.randn(2, 3, size, size)
    network: Any = encoder.backbone.network
    with torch.inference_mode():
        (expected,) = network.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )  # (B, D, h, w)
        torch.testing.assert_close(encoder(images), expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


# ---- engines ----


@pytest.mark.parametrize("kind", ["grid", "logits"])
def test_openvino_is_pytorch(kind: FeatureKind) -> None:
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", kind)
    encoder = build_encoder(config, pretrained=True)
    pixels = pixels_of_photos(config.preprocessing)
    fast, eager = (
        build_engine(
            encoder,
            config.preprocessing,
            fingerprint=weights_fingerprint(encoder),
            device=torch.device("cpu"),
            num_threads=1,
            kind=engine,
        )(pixels)
        for engine in ("openvino", "torch")
    )
    assert float(eager.abs().max()) > 1
    torch.testing.assert_close(fast, eager, rtol=0, atol=1e-3)


def test_both_engines_caption_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder_config = describe_encoder("efficientnet_lite", "efficientnet_lite0")
    decoder_config = DecoderConfig(projection_dim=64, hidden_dim=64, embedding_dim=32, attention_dim=32)
    vocabulary = Vocabulary.build([[f"word{i}" for i in range(200)]])
    decoder = build_decoder(decoder_config, encoder_config.feature_dim, len(vocabulary))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3.0)  # else all words are about equally probable
    save_checkpoint(
        tmp_path,
        Captioner(build_encoder(encoder_config, pretrained=True), decoder),
        ModelConfig(encoder=encoder_config, decoder=decoder_config),
        vocabulary,
    )
    fast, eager = (Predictor.from_checkpoint(tmp_path, engine=engine) for engine in ("openvino", "torch"))
    ours, theirs = fast.caption(PHOTOS), eager.caption(PHOTOS)
    assert [[c.text for c in captions] for captions in ours] == [[c.text for c in captions] for captions in theirs]
    assert len({captions[0].text for captions in ours}) > 1
    for one, other in zip(ours, theirs, strict=True):
        assert one[0].log_prob == pytest.approx(other[0].log_prob, abs=1e-2)
