"""Self-critical training: advantages by hand, the loss against its formula, and that it raises the reward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captionlib.config import DecoderConfig
from captionlib.decoders import DecoderOutput, build_decoder
from captionlib.metrics import CiderD
from captionlib.training.batches import CaptionBatches
from captionlib.training.inputs import FeatureViews
from captionlib.training.learner import Learner
from captionlib.training.self_critical import Samples, SelfCritic, advantages, self_critical_loss
from captionlib.training.settings import OptimizerSettings, SelfCriticalSettings, TrainingSettings
from captionlib.vocabulary import Vocabulary


def test_each_sample_is_held_against_the_others() -> None:
    rewards = np.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    assert advantages(rewards).tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]]
    with pytest.raises(ValueError, match="2 samples or more"):
        advantages(np.ones((3, 1)))


def test_the_loss_by_its_formula() -> None:
    # Two images with one given caption and two samples each; words in an order of their own.
    captions = torch.tensor([0, 4, 1, 2, 5, 2, 3])  # b * 3 + k: words 0 and 6 belong to given captions
    torch.manual_seed(0)
    logits = torch.randn(7, 5)
    targets = torch.tensor([1, 2, 3, 4, 0, 1, 2])
    samples = Samples([], np.array([[0.5, -0.5], [2.0, -2.0]]), 0.0)
    loss = self_critical_loss(DecoderOutput(logits, targets, captions, None), captions % 3 >= 1, samples, 1)
    log_probs = logits.log_softmax(-1)
    weight_of_word = {1: 2.0, 2: 0.5, 3: -0.5, 4: -2.0, 5: -0.5}  # 4 = 1*3+1: image 1, sample 0; ...
    expected = -sum(w * float(log_probs[m, targets[m]]) for m, w in weight_of_word.items()) / 5
    assert float(loss) == pytest.approx(expected)


def test_training_on_rewards_raises_them() -> None:
    words = ["a", "dog", "cat", "runs", "sits", "on", "grass"]
    vocabulary = Vocabulary(["<pad>", "<bos>", "<eos>", "<unk>", *words])
    references = [["a", "dog", "runs", "on", "grass"], ["a", "cat", "sits"]] * 3
    captions = [[vocabulary.encode(reference)] for reference in references]
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(size=(1, 4))] * 1 + [rng.normal(size=(1, 4))]).astype(np.float16)
    batches = CaptionBatches(FeatureViews([features], np.array([0, 1] * 3)), captions, images_per_step=6)
    torch.manual_seed(0)
    decoder = build_decoder(
        DecoderConfig(projection_dim=0, hidden_dim=12, embedding_dim=12, attention_dim=8, dropout=0.0),
        4,
        len(vocabulary),
    )
    critic = SelfCritic(
        CiderD.from_references([[r] for r in references], eos=True), vocabulary, num_samples=8, max_tokens=7, seed=0
    )
    settings = TrainingSettings(
        epochs=60,
        label_smoothing=0.0,
        self_critical=SelfCriticalSettings(weight=0.9, num_samples=8),
        optimizer=OptimizerSettings(learning_rate=0.02, schedule="constant"),
    )
    learner = Learner(decoder, decoder, settings, steps_per_epoch=1, critic=critic)

    def reward(step: int) -> float:
        batch = next(iter(batches.epoch(0)))
        return critic.samples(decoder, batch.features.float(), batch.images.tolist(), step).mean_reward

    before = reward(1000)
    for epoch in range(60):
        learner.step(next(iter(batches.epoch(epoch))))
    assert reward(1000) > before + 1.0


def test_draws_are_the_same_again_and_differ_from_step_to_step() -> None:
    vocabulary = Vocabulary(["<pad>", "<bos>", "<eos>", "<unk>", "a", "b"])
    torch.manual_seed(0)
    decoder = build_decoder(DecoderConfig(projection_dim=0, hidden_dim=4, embedding_dim=4), 3, len(vocabulary))
    critic = SelfCritic(
        CiderD.from_references([[["a"]], [["b"]]], eos=True), vocabulary, num_samples=2, max_tokens=5, seed=0
    )
    features = torch.randn(2, 1, 3)
    first = critic.samples(decoder, features, [0, 1], step=3)
    again = critic.samples(decoder, features, [0, 1], step=3)
    other = critic.samples(decoder, features, [0, 1], step=4)
    assert first.captions == again.captions
    assert first.captions != other.captions


def test_scheduled_sampling_does_not_go_with_it() -> None:
    from captionlib.training.settings import TeacherForcingSettings

    with pytest.raises(ValueError, match="teacher forcing"):
        TrainingSettings(
            self_critical=SelfCriticalSettings(weight=0.5), teacher_forcing=TeacherForcingSettings(start=0.9)
        )
