"""torchvision's networks as encoders: each family gives features that a decoder learns from and captions.

Random weights and small images: what is tested is the way through, not the numbers (`tests/parity` does those).
"""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch

from captionlib.captioners.from_features import Captioner
from captionlib.config import DecoderConfig, FeatureKind, SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.training.losses import caption_loss
from captionlib.vocabulary import BOS, EOS

WORDS = 12
# Network, side of a small image that it takes, positions and width of its grid.
NETWORKS = [
    ("alexnet", 64, 1, 256),
    ("convnext_tiny", 32, 1, 768),
    ("densenet121", 64, 4, 1024),
    ("efficientnet_b0", 64, 4, 1280),
    ("efficientnet_v2_s", 64, 4, 1280),
    ("googlenet", 64, 4, 1024),
    ("inception_v3", 96, 1, 2048),
    ("maxvit_t", 224, 49, 512),
    ("mnasnet0_5", 64, 4, 1280),
    ("mobilenet_v2", 64, 4, 1280),
    ("mobilenet_v3_large", 64, 4, 960),
    ("mobilenet_v3_small", 64, 4, 576),
    ("regnet_y_400mf", 64, 4, 440),
    ("resnet18", 64, 4, 512),
    ("resnet34", 64, 4, 512),
    ("resnet50", 64, 4, 2048),
    ("resnet101", 64, 4, 2048),
    ("resnet152", 64, 4, 2048),
    ("resnext50_32x4d", 64, 4, 2048),
    ("shufflenet_v2_x0_5", 64, 4, 1024),
    ("squeezenet1_1", 64, 9, 512),
    ("swin_t", 64, 4, 768),
    ("swin_v2_t", 64, 4, 768),
    ("vgg16", 64, 4, 512),
    ("vgg19", 64, 4, 512),
    ("vit_b_32", 64, 4, 768),
    ("wide_resnet50_2", 64, 4, 2048),
]


@pytest.mark.parametrize(("name", "size", "positions", "width"), NETWORKS)
def test_from_image_to_caption(name: str, size: int, positions: int, width: int) -> None:
    torch.manual_seed(0)
    config = describe_encoder("torchvision", name, size=size)
    assert (config.num_positions, config.feature_dim) == (positions, width)
    encoder = build_encoder(config)
    decoder = build_decoder(
        DecoderConfig(projection_dim=8, hidden_dim=8, embedding_dim=8, attention_dim=8), width, WORDS
    )

    features = encoder.train()(torch.randn(2, 3, size, size))  # batch norm's statistics of a fresh network are none
    assert features.shape == (2, positions, width)

    tokens = torch.tensor([[[BOS, 5, 6, EOS]], [[BOS, 7, 8, EOS]]])
    output = decoder(features, tokens)
    caption_loss(output.logits, output.targets).objective.backward()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert unused == []  # the head that grids have no use for is cut off

    captions = Captioner(encoder.eval(), decoder.eval()).caption_features(
        encoder(torch.randn(1, 3, size, size)).detach(), SearchConfig(max_tokens=4)
    )
    assert len(captions[0]) == 1
    assert len(captions[0][0].tokens) <= 4


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("alexnet", "pooled", (1, 4096)),
        ("mobilenet_v3_small", "pooled", (1, 1024)),
        ("squeezenet1_1", "pooled", (1, 512)),
        ("squeezenet1_1", "logits", (1, 1000)),
        ("inception_v3", "pooled", (1, 2048)),
        ("inception_v3", "logits", (1, 1000)),
        ("resnet18", "logits", (1, 1000)),
    ],
)
def test_pooled_and_logits(name: str, kind: FeatureKind, shape: tuple[int, int]) -> None:
    config = describe_encoder("torchvision", name, kind, size=80)
    assert (config.num_positions, config.feature_dim) == shape
    assert config.features == kind


def test_preprocessing_is_that_of_the_weights() -> None:
    resnet = describe_encoder("torchvision", "resnet18").preprocessing
    assert resnet.size == 224
    assert resnet.mean == pytest.approx((123.675, 116.28, 103.53))  # 255 * (0.485, 0.456, 0.406)
    assert resnet.std == pytest.approx((58.395, 57.12, 57.375))
    inception = describe_encoder("torchvision", "inception_v3", "pooled").preprocessing
    assert inception.size == 299
    assert inception.mean == inception.std == (127.5,) * 3


def test_sizes_of_transformers() -> None:
    assert describe_encoder("torchvision", "vit_b_32", size=96).num_positions == 9
    config = describe_encoder("torchvision", "vit_b_32", size=96)
    with pytest.raises(ValueError, match="the weights of vit_b_32 are for 224 pixels and no other size, got 96"):
        build_encoder(config, pretrained=True)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="torchvision has no classification network 'resnet19'; it has, among others"):
        describe_encoder("torchvision", "resnet19")


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    config = describe_encoder("torchvision", "inception_v3", size=80)
    with pytest.raises(ValueError, match="Name or service not known") as caught:
        build_encoder(config, pretrained=True)
    assert "https://download.pytorch.org/models/inception_v3" in str(caught.value)
    assert "hub/checkpoints" in str(caught.value)
    assert "pip install 'captionlib[train]'" in str(caught.value)
