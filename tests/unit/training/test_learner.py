"""The learner: loss falls; parts and workers add up to the whole; a resumed run is the run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from captionlib.config import DecoderConfig
from captionlib.decoders import build_decoder
from captionlib.training.batches import CaptionBatches
from captionlib.training.inputs import FeatureViews
from captionlib.training.learner import Learner, NonFiniteLossError
from captionlib.training.settings import OptimizerSettings, TrainingSettings

NUM_IMAGES, POSITIONS, WIDTH, VOCABULARY = 12, 3, 6, 20


def make_batches(world_size: int = 1, rank: int = 0) -> CaptionBatches:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(NUM_IMAGES, POSITIONS, WIDTH)).astype(np.float16)
    captions = [
        [list(rng.integers(4, VOCABULARY, size=rng.integers(1, 7))) for _ in range(rng.integers(1, 4))]
        for _ in range(NUM_IMAGES)
    ]
    return CaptionBatches(
        FeatureViews([features], np.arange(NUM_IMAGES)), captions, images_per_step=4, rank=rank, world_size=world_size
    )


def make_learner(dropout: float = 0.0, **options: object) -> Learner:
    torch.manual_seed(0)
    config = DecoderConfig(projection_dim=8, hidden_dim=8, embedding_dim=8, attention_dim=8, dropout=dropout)
    decoder = build_decoder(config, WIDTH, VOCABULARY)
    settings = TrainingSettings(**({"epochs": 40, "label_smoothing": 0.0} | options))  # type: ignore[arg-type]
    return Learner(decoder, decoder, settings, steps_per_epoch=len(make_batches()))


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.decoder.state_dict().items()}


def test_the_loss_falls_to_what_can_be_learnt_by_heart() -> None:
    learner = make_learner(optimizer=OptimizerSettings(learning_rate=0.02))
    losses = []
    for epoch in range(40):
        sums = [learner.step(batch) for batch in make_batches().epoch(epoch)]
        losses.append(sum(loss for loss, _ in sums) / sum(words for _, words in sums))
    assert losses[0] > 2.0
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("split_at", [1, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(split_at: int) -> None:
    options = {"dropout": 0.3, "ema_decay": 0.9, "epochs": 2}
    steps = [batch for epoch in range(2) for batch in make_batches().epoch(epoch)]
    whole = make_learner(**options)
    torch.manual_seed(1)
    losses = [whole.step(batch) for batch in steps]

    first = make_learner(**options)
    torch.manual_seed(1)
    for batch in steps[:split_at]:
        first.step(batch)
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(99)
    second = make_learner(**options)
    second.load_state_dict(state)
    assert [second.step(batch) for batch in steps[split_at:]] == losses[split_at:]
    for name, value in weights(whole).items():
        assert torch.equal(value, second.decoder.state_dict()[name]), name
    assert whole.average is not None
    assert second.average is not None
    assert all(torch.equal(value, second.average[name]) for name, value in whole.average.items())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("doubly_stochastic", [0.0, 1.0])
def test_parts_of_a_step_add_up_to_the_step(label_smoothing: float, doubly_stochastic: float) -> None:
    options = {"label_smoothing": label_smoothing, "optimizer": OptimizerSettings(kind="sgd", clip_norm=0.0)}
    if doubly_stochastic:
        options["doubly_stochastic"] = doubly_stochastic
    batch = next(iter(make_batches().epoch(0)))
    whole, parts = make_learner(**options), make_learner(accumulation=3, **options)  # type: ignore[arg-type]
    assert whole.step(batch) == pytest.approx(parts.step(batch))
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, parts.decoder.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_gradients_of_two_workers_on_half_batches_equal_one_worker_on_the_whole() -> None:
    settings = {"optimizer": OptimizerSettings(kind="sgd", clip_norm=0.0, momentum=0.0)}
    whole = make_learner(**settings)  # type: ignore[arg-type]
    whole.step(next(iter(make_batches().epoch(0))))
    expected = {name: p.grad for name, p in whole.decoder.named_parameters()}

    gradients = []
    for rank in (0, 1):
        worker = make_learner(**settings)  # type: ignore[arg-type]
        worker.world_size = 2
        worker.step(next(iter(make_batches(world_size=2, rank=rank).epoch(0))))
        gradients.append({name: p.grad for name, p in worker.decoder.named_parameters()})
    for name, gradient in expected.items():
        assert gradient is not None, name
        mean = (gradients[0][name] + gradients[1][name]) / 2  # type: ignore[operator]  # what data-parallel training does with them
        torch.testing.assert_close(mean, gradient, atol=1e-5, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    learner = make_learner()
    before = weights(learner)
    batch = next(iter(make_batches().epoch(0)))
    batch.features[1] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 0") as found:
        learner.step(batch)
    assert found.value.images == batch.images.tolist()
    assert all(torch.equal(value, learner.decoder.state_dict()[name]) for name, value in before.items())


def test_gradients_that_are_not_finite_are_nobodys_images_where_another_workers_loss_may_be_to_blame() -> None:
    learner = make_learner(optimizer=OptimizerSettings(clip_norm=0.0))
    learner.world_size = 2
    before = weights(learner)
    parameter = next(p for p in learner.decoder.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match="norm is") as found:
        learner.step(next(iter(make_batches().epoch(0))))
    assert found.value.images == []
    assert all(torch.equal(value, learner.decoder.state_dict()[name]) for name, value in before.items())


def test_the_plateau_factor_scales_the_learning_rate() -> None:
    learner = make_learner(optimizer=OptimizerSettings(learning_rate=0.1, schedule="plateau"))
    assert learner.learning_rate_at(5) == 0.1
    learner.plateau_factor = 0.25
    learner.step(next(iter(make_batches().epoch(0))))
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.025]


def test_averaged_weights_follow_and_are_put_back() -> None:
    learner = make_learner(ema_decay=0.5, optimizer=OptimizerSettings(learning_rate=0.1))
    start = weights(learner)
    learner.step(next(iter(make_batches().epoch(0))))
    after = weights(learner)
    # Decay in the first steps is (1 + n) / (10 + n): 2 / 11 after the first.
    expected = {name: 2 / 11 * start[name] + 9 / 11 * after[name] for name in start}
    with learner.averaged_weights():
        for name, value in learner.decoder.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert all(torch.equal(value, learner.decoder.state_dict()[name]) for name, value in after.items())
