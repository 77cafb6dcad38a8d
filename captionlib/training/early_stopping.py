"""What dev scores decide: when the plateau schedule lowers the learning rate, when training stops early.

Both are functions of the finished epochs alone, which a checkpoint holds, so that a resumed run decides as the
uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from captionlib.training.settings import OptimizerSettings, TrainingSettings, WatchSettings

Row = Mapping[str, Any]


def is_over(history: Sequence[Row], settings: TrainingSettings) -> bool:
    """Whether the run has had its epochs, or has stopped early."""
    return len(history) >= settings.epochs or has_stopped_early(history, settings)


def has_stopped_early(history: Sequence[Row], settings: TrainingSettings) -> bool:
    """Whether the last `watch.patience` epochs have brought no new best; never, when that is 0."""
    patience = settings.watch.patience
    return 0 < patience <= epochs_without_improvement(history, settings.watch)


def epochs_without_improvement(history: Sequence[Row], watch: WatchSettings) -> int:
    """Epochs since the best one; the first epoch is one of improvement."""
    return _replay(history, watch)[-1] if history else 0


def plateau_factor(history: Sequence[Row], optimizer: OptimizerSettings, watch: WatchSettings) -> float:
    """What the plateau schedule multiplies the peak learning rate by, after these epochs."""
    factor, waited = 1.0, 0
    for bad_epochs in _replay(history, watch):
        waited = waited + 1 if bad_epochs else 0
        if waited >= optimizer.plateau_epochs:
            factor, waited = factor * optimizer.step_factor, 0
    return factor


def _replay(history: Sequence[Row], watch: WatchSettings) -> list[int]:
    """After each epoch, the number of epochs since the best."""
    sign = -1.0 if watch.metric == "dev_loss" else 1.0
    best, waited, found = -math.inf, 0, []
    for row in history:
        value = sign * row[watch.metric]
        waited = 0 if value > best + watch.min_change else waited + 1
        best = value if waited == 0 else best
        found.append(waited)
    return found
