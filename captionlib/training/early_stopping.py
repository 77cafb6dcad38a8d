"""Decides from dev scores when the plateau schedule lowers the learning rate, and when training stops early.

Both depend only on the finished epochs, which a checkpoint contains, so that a resumed run decides like an
uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from captionlib.training.settings import OptimizerSettings, TrainingSettings, WatchSettings

Row = Mapping[str, Any]


def is_over(history: Sequence[Row], settings: TrainingSettings) -> bool:
    """Whether the run has finished all epochs or stopped early."""
    return len(history) >= settings.epochs or has_stopped_early(history, settings)


def has_stopped_early(history: Sequence[Row], settings: TrainingSettings) -> bool:
    """Whether the last `watch.patience` epochs had no new best score; never if that is 0."""
    patience = settings.watch.patience
    return 0 < patience <= epochs_without_improvement(history, settings.watch)


def epochs_without_improvement(history: Sequence[Row], watch: WatchSettings) -> int:
    """Return the number of epochs since the best one; the first epoch counts as an improvement."""
    return _replay(history, watch)[-1] if history else 0


def plateau_factor(history: Sequence[Row], optimizer: OptimizerSettings, watch: WatchSettings) -> float:
    """Return the factor of the peak learning rate under the plateau schedule after these epochs."""
    factor, waited = 1.0, 0
    for bad_epochs in _replay(history, watch):
        waited = waited + 1 if bad_epochs else 0
        if waited >= optimizer.plateau_epochs:
            factor, waited = factor * optimizer.step_factor, 0
    return factor


def _replay(history: Sequence[Row], watch: WatchSettings) -> list[int]:
    """Return, after each epoch, the number of epochs since the best one."""
    sign = -1.0 if watch.metric == "dev_loss" else 1.0
    best, waited, found = -math.inf, 0, []
    for row in history:
        value = sign * row[watch.metric]
        waited = 0 if value > best + watch.min_change else waited + 1
        best = value if waited == 0 else best
        found.append(waited)
    return found
