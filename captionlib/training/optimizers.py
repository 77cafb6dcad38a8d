"""Optimizers, and schedules of learning rate and teacher forcing, each a row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from captionlib.training.settings import OptimizerSettings, TeacherForcingSettings

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerSettings], torch.optim.Optimizer]] = {
    "adam": lambda g, s: torch.optim.Adam(g, lr=s.learning_rate, weight_decay=s.weight_decay, fused=_is_on_gpu(g)),
    "adamw": lambda g, s: torch.optim.AdamW(g, lr=s.learning_rate, weight_decay=s.weight_decay, fused=_is_on_gpu(g)),
    "sgd": lambda g, s: torch.optim.SGD(
        g, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
    ),
    "rmsprop": lambda g, s: torch.optim.RMSprop(
        g, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
    ),
}


def _is_on_gpu(groups: list[dict[str, Any]]) -> bool | None:
    """Whether the optimizer may update all parameters in one kernel; None leaves the choice to PyTorch."""
    return all(p.device.type == "cuda" for group in groups for p in group["params"]) or None


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: OptimizerSettings, encoder: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer for the trainable parameters.

    Each of its groups contains under `factor` the multiplier of its learning rate.

    Args:
        parameters: parameters of the whole model.
        encoder: parameters of the pretrained encoder, which has a lower learning rate.
    """
    slow = {id(parameter) for parameter in encoder}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in slow], "factor": 1.0},
        {"params": [p for p in trained if id(p) in slow], "factor": settings.encoder_factor},
    ]
    return OPTIMIZERS[settings.kind]([group for group in groups if group["params"]], settings)


def learning_rate_factor(step: int, *, steps_per_epoch: int, num_steps: int, settings: OptimizerSettings) -> float:
    """Return the factor of the peak learning rate at a step (0-based) of a run of `num_steps`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "step":
        return settings.step_factor ** (step // (steps_per_epoch * settings.step_epochs))
    progress = min((step - settings.warmup_steps) / max(num_steps - settings.warmup_steps, 1), 1.0)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "linear":
        return 1 - progress
    return 1.0


def teacher_forcing_ratio(epoch: int, *, epochs: int, settings: TeacherForcingSettings) -> float:
    """Return the probability of given words in an epoch (0-based): Bengio et al. 2015, section 2.4, by epochs."""
    if settings.schedule == "linear":
        return settings.start + (settings.end - settings.start) * epoch / max(epochs - 1, 1)
    if settings.schedule == "exponential":
        return max(settings.start * settings.rate**epoch, settings.end)
    if settings.schedule == "inverse_sigmoid":
        return max(settings.rate / (settings.rate + math.exp(epoch / settings.rate)), settings.end)
    return settings.start
