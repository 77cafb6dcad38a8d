"""Schedules by hand, and that each optimizer is the one it says."""

from __future__ import annotations

import math

import pytest
import torch

from captionlib.training.optimizers import OPTIMIZERS, build_optimizer, learning_rate_factor, teacher_forcing_ratio
from captionlib.training.settings import OptimizerSettings, TeacherForcingSettings


def factor(step: int, **options: object) -> float:
    return learning_rate_factor(step, steps_per_epoch=10, num_steps=100, settings=OptimizerSettings(**options))  # type: ignore[arg-type]


def test_warm_up_rises_to_the_peak() -> None:
    assert [factor(step, schedule="constant", warmup_steps=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_from_one_over_a_half_to_zero() -> None:
    assert factor(0, schedule="cosine") == 1.0
    assert factor(50, schedule="cosine") == pytest.approx(0.5)
    assert factor(25, schedule="cosine") == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert factor(100, schedule="cosine") == pytest.approx(0.0)


def test_linear_and_step() -> None:
    assert factor(25, schedule="linear") == pytest.approx(0.75)
    assert [factor(s, schedule="step", step_epochs=2, step_factor=0.1) for s in (0, 19, 20, 40)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )


def ratio(epoch: int, **options: object) -> float:
    return teacher_forcing_ratio(epoch, epochs=5, settings=TeacherForcingSettings(**options))  # type: ignore[arg-type]


def test_teacher_forcing_schedules_by_hand() -> None:
    assert [ratio(e) for e in range(5)] == [1.0] * 5
    assert [ratio(e, schedule="linear", end=0.6) for e in range(5)] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
    assert [ratio(e, schedule="exponential", rate=0.9, end=0.0) for e in range(3)] == pytest.approx([1, 0.9, 0.81])
    assert ratio(9, schedule="exponential", rate=0.5, end=0.25) == 0.25
    k = 4.0
    expected = [k / (k + math.exp(e / k)) for e in range(3)]
    assert [ratio(e, schedule="inverse_sigmoid", rate=k, end=0.0) for e in range(3)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_optimizers_leave_frozen_parameters_alone(kind: str, expected: type) -> None:
    trained, frozen = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = build_optimizer([trained, frozen], OptimizerSettings(kind=kind, learning_rate=0.5))  # type: ignore[arg-type]
    assert type(optimizer) is expected
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_an_encoder_that_is_trained_has_a_group_of_its_own() -> None:
    decoder, encoder = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    settings = OptimizerSettings(encoder_factor=0.2)
    optimizer = build_optimizer([decoder, encoder], settings, [encoder])
    assert [(group["params"], group["factor"]) for group in optimizer.param_groups] == [
        ([decoder], 1.0),
        ([encoder], 0.2),
    ]


def test_the_table_and_the_settings_name_the_same_kinds() -> None:
    for kind in OPTIMIZERS:
        OptimizerSettings(kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0.0}, {"clip_norm": -1.0}, {"plateau_epochs": 0}, {"step_factor": 2.0}]
)
def test_settings_refuse_nonsense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        OptimizerSettings(**values)  # type: ignore[arg-type]
