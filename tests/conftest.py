"""What all tests share: a cache of their own, and a captioner small enough to be made on the spot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

WORDS = ["a", "man", "dog", "cat", "on", "the", "in", "red", "grass", "water", "is", "sitting", "running"]


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAPTIONLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def _tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from captionlib.captioners.from_features import Captioner
    from captionlib.checkpoints import save_checkpoint
    from captionlib.config import DecoderConfig, ModelConfig, SearchConfig
    from captionlib.decoders import build_decoder
    from captionlib.encoders import build_encoder, describe_encoder
    from captionlib.vocabulary import Vocabulary

    vocabulary = Vocabulary.build([WORDS])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder_config = describe_encoder("efficientnet_lite", "efficientnet_lite0", size=64)
        decoder_config = DecoderConfig(projection_dim=32, hidden_dim=32, embedding_dim=16, attention_dim=16)
        encoder = build_encoder(encoder_config)
        decoder = build_decoder(decoder_config, encoder_config.feature_dim, len(vocabulary))
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(3.0)  # else all words are about equally probable, and all images alike
            _settle_batch_norm(encoder)
    model = ModelConfig(encoder=encoder_config, decoder=decoder_config)
    directory = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(
        directory, Captioner(encoder, decoder), model, vocabulary, search=SearchConfig(min_tokens=2, max_tokens=8)
    )
    return directory


def _settle_batch_norm(encoder: torch.nn.Module) -> None:
    """Give batch norm the statistics of noise: with those of a fresh network, nothing of an image gets through."""
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    encoder.train()
    encoder(torch.randn(8, 3, 64, 64))
    encoder.eval()


@pytest.fixture
def tiny_checkpoint(_tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A directory with a random captioner of 17 words for images of 64 pixels, always the same; a copy of its own."""
    directory = tmp_path / "tiny_checkpoint"
    shutil.copytree(_tiny_checkpoint, directory)
    return directory


@pytest.fixture(scope="session")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of `hub_models`, made when it is first asked for."""
    from tests import hub_models

    root = tmp_path_factory.mktemp("hub")

    def make(name: str) -> Path:
        if not (root / name).exists():
            hub_models.MODELS[name](root / name)
        return root / name

    return make
