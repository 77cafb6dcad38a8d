"""Optimizers and the schedules of learning rate and teacher forcing, each a row of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from captionlib.training.settings import OptimizerSettings, TeacherForcingSettings

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], OptimizerSettings], torch.optim.Optimizer]] = {
    "adam": lambda p, s: torch.optim.Adam(p, lr=s.learning_rate, weight_decay=s.weight_decay),
    "adamw": lambda p, s: torch.optim.AdamW(p, lr=s.learning_rate, weight_decay=s.weight_decay),
    "sgd": lambda p, s: torch.optim.SGD(
        p, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
    ),
    "rmsprop": lambda p, s: torch.optim.RMSprop(
        p, lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
    ),
}


def build_optimizer(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer over those parameters that are to be trained."""
    return OPTIMIZERS[settings.kind]([p for p in parameters if p.requires_grad], settings)


def learning_rate_factor(step: int, *, steps_per_epoch: int, num_steps: int, settings: OptimizerSettings) -> float:
    """What the peak learning rate is multiplied by at a step (0-based) of a run of `num_steps`."""
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
    """Share of given words in an epoch (0-based): Bengio et al. 2015, section 2.4, with epochs for steps."""
    if settings.schedule == "linear":
        return settings.start + (settings.end - settings.start) * epoch / max(epochs - 1, 1)
    if settings.schedule == "exponential":
        return max(settings.start * settings.rate**epoch, settings.end)
    if settings.schedule == "inverse_sigmoid":
        return max(settings.rate / (settings.rate + math.exp(epoch / settings.rate)), settings.end)
    return settings.start
