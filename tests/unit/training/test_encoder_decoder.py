"""An encoder and a decoder as one: the same numbers as the two apart, and only what is to learn learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captionlib.captioners.from_features import Captioner
from captionlib.config import DecoderConfig, EncoderConfig, Preprocessing, SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders.base import Encoder
from captionlib.images.pixels import normalize
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.vocabulary import BOS, EOS

PREPROCESSING = Preprocessing(size=8)
TOKENS = torch.tensor([[[BOS, 5, 6, EOS]], [[BOS, 7, 8, EOS]]])


def make_model(stage: str | None) -> EncoderDecoder:
    torch.manual_seed(0)
    backbone = nn.Sequential()
    backbone.add_module("first", nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4)))
    backbone.add_module("second", nn.Sequential(nn.Conv2d(4, 6, 2, 2), nn.BatchNorm2d(6)))
    encoder = Encoder(backbone, EncoderConfig(name="two", feature_dim=6, num_positions=4, preprocessing=PREPROCESSING))
    encoder.freeze_before(stage)
    config = DecoderConfig(projection_dim=8, hidden_dim=8, embedding_dim=8, attention_dim=8, dropout=0.0)
    return EncoderDecoder(encoder, build_decoder(config, 6, 12)).train()


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_it_is_the_decoder_on_the_encoders_features() -> None:
    model = make_model("second")
    features = model.encoder(normalize(pixels(), PREPROCESSING))
    apart, together = model.decoder(features, TOKENS), model(pixels(), TOKENS)
    assert torch.equal(apart.logits, together.logits)
    memory, same = model.decoder.memory(features), model.memory(pixels())
    assert all(torch.equal(memory[name], same[name]) for name in memory)


@pytest.mark.parametrize(("stage", "trained"), [(None, set()), ("second", {"second"}), ("first", {"first", "second"})])
def test_gradients_reach_the_stages_that_are_trained(stage: str | None, trained: set[str]) -> None:
    model = make_model(stage)
    model(pixels(), TOKENS).logits.sum().backward()
    reached = {name.split(".")[0] for name, p in model.encoder.backbone.named_parameters() if p.grad is not None}
    assert reached == trained


def test_batch_norm_keeps_its_statistics() -> None:
    model = make_model("first")
    before = {name: value.clone() for name, value in model.encoder.named_buffers()}
    model(pixels(), TOKENS)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.named_buffers())


def test_a_frozen_encoder_runs_once_for_the_captions_drawn_and_for_the_step_that_learns_from_them() -> None:
    model, shown = make_model(None), pixels()
    runs: list[int] = []
    model.encoder.register_forward_hook(lambda *_: runs.append(1))
    Captioner(None, model.eval()).caption_features(shown, SearchConfig(method="greedy", max_tokens=3))
    model.train()(shown, TOKENS).logits.sum().backward()
    assert len(runs) == 1
    assert all(p.grad is not None for p in model.decoder.project.parameters())  # type: ignore[union-attr]
    model(pixels().flip(0), TOKENS)
    assert len(runs) == 2


def test_a_trained_encoder_runs_every_time() -> None:
    model, shown = make_model("second"), pixels()
    before = model.encode(shown).detach()
    with torch.no_grad():
        model.encoder.backbone.second[0].weight.mul_(2)  # type: ignore[union-attr,index]
    assert not torch.equal(model.encode(shown), before)
