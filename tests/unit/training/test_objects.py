"""Objects as an auxiliary task: labels, head and loss by hand, and that an encoder learns from them."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from captionlib.config import DecoderConfig
from captionlib.datasets import DatasetError, read_objects
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.training.batches import Batch
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.training.learner import Learner
from captionlib.training.objects import ObjectLabels, ObjectsHead, objects_loss
from captionlib.training.settings import OptimizerSettings, TrainingSettings

LISTS = {"a.jpg": ["dog", "cat"], "b.jpg": [], "elsewhere.jpg": ["bear"]}


def test_labels_by_hand() -> None:
    found = ObjectLabels.of(["a.jpg", "nobody_looked.jpg", "b.jpg"], LISTS)
    assert found.categories == ("cat", "dog")  # no image here shows a bear
    assert found.labels.tolist() == [[1, 1], [-1, -1], [0, 0]]
    assert found.num_labelled == 2
    assert found.digest() != ObjectLabels.of(["b.jpg", "nobody_looked.jpg", "a.jpg"], LISTS).digest()


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"a\.jpg"):
        ObjectLabels.of(["a.jpg", "a.jpg"], LISTS)


def test_a_file_that_is_wrong_says_where(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_text('{"a.jpg": ["dog"], "b.jpg": "cat"}')
    with pytest.raises(DatasetError, match=r"objects\.json.*b\.jpg"):
        read_objects(str(path))


def test_loss_by_hand() -> None:
    # Odds of 3 : 1 for the first category and 1 : 1 for the second; nobody looked at the second image.
    logits = torch.tensor([[math.log(3), 0.0], [5.0, 5.0]], requires_grad=True)
    loss = objects_loss(logits, torch.tensor([[1, 0], [-1, -1]], dtype=torch.int8))
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.5))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0, 0]


def test_positions_are_pooled_by_hand() -> None:
    head = ObjectsHead(1, 1)
    torch.nn.init.ones_(head.classify.weight)
    torch.nn.init.zeros_(head.classify.bias)
    features = torch.tensor([[[math.log(1.0)], [math.log(3.0)]]])  # (1, 2, 1)
    assert head(features).item() == pytest.approx(math.log((1 + 3) / 2))


def test_an_encoder_learns_objects_and_a_resumed_learner_goes_on_equally() -> None:
    def learner() -> Learner:
        torch.manual_seed(0)
        config = describe_encoder("efficientnet_lite", "efficientnet_lite0", "grid", 32)
        encoder = build_encoder(config, pretrained=False)
        encoder.freeze_before("head")
        small = DecoderConfig(hidden_dim=8, embedding_dim=8, attention_dim=8, projection_dim=8)
        decoder = build_decoder(small, feature_dim=1280, vocabulary_size=9)
        model = EncoderDecoder(encoder, decoder, ObjectsHead(1280, 2))
        settings = TrainingSettings(
            epochs=2,
            objects_weight=1.0,
            ema_decay=0.9,
            optimizer=OptimizerSettings(schedule="constant", learning_rate=0.1),
        )
        return Learner(model, model, settings, steps_per_epoch=8, encoder=encoder)

    pixels = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8))
    labels = torch.tensor([[1, 0], [0, 1], [-1, -1]], dtype=torch.int8)
    tokens = torch.tensor([[[1, 5, 2]]] * 3)
    batch = Batch(
        pixels, tokens, np.arange(3), num_words=6, num_captions=3, num_images=3, objects=labels, num_labelled=2
    )

    def loss(of: Learner) -> float:
        assert isinstance(of.decoder, EncoderDecoder)
        assert of.decoder.objects is not None
        return float(objects_loss(of.decoder.objects(of.decoder.encode(pixels)), labels).detach())

    first = learner()
    before = loss(first)
    for _ in range(4):
        first.step(batch)
    other = learner()
    other.load_state_dict(copy.deepcopy(first.state_dict()))
    for one in (first, other):
        torch.manual_seed(1)
        for _ in range(8):
            one.step(batch)
    assert loss(first) < 0.6 * before
    assert loss(other) == pytest.approx(loss(first), rel=1e-5)
    assert first.decoder.eval()(pixels, tokens).objects is None  # only in training
