"""What dev scores decide, on scores written by hand."""

from __future__ import annotations

import pytest

from captionlib.training.early_stopping import epochs_without_improvement, has_stopped_early, is_over, plateau_factor
from captionlib.training.settings import OptimizerSettings, TrainingSettings, WatchSettings

#        epoch:  1    2    3    4    5    6    7
SCORES = [0.2, 0.5, 0.4, 0.5, 0.6, 0.6, 0.55]
WAITED = [0, 0, 1, 2, 0, 1, 2]


def history(scores: list[float], metric: str = "cider_d") -> list[dict[str, float]]:
    return [{metric: score} for score in scores]


def test_epochs_since_the_best_by_hand() -> None:
    found = [epochs_without_improvement(history(SCORES[:n]), WatchSettings()) for n in range(len(SCORES) + 1)]
    assert found == [0, *WAITED]


def test_of_a_loss_the_least_is_the_best() -> None:
    losses = [3.0, 2.0, 2.5, 1.5]
    watch = WatchSettings(metric="dev_loss")
    assert [epochs_without_improvement(history(losses[:n], "dev_loss"), watch) for n in (1, 2, 3, 4)] == [0, 0, 1, 0]


def test_a_change_that_is_too_small_is_no_improvement() -> None:
    assert epochs_without_improvement(history([0.5, 0.505, 0.509]), WatchSettings(min_change=0.01)) == 2
    assert epochs_without_improvement(history([0.5, 0.505, 0.52]), WatchSettings(min_change=0.01)) == 0


@pytest.mark.parametrize(("patience", "last_epoch"), [(0, 7), (1, 3), (2, 4), (3, 7)])
def test_early_stopping(patience: int, last_epoch: int) -> None:
    settings = TrainingSettings(epochs=7, watch=WatchSettings(patience=patience))
    done = next(n for n in range(8) if is_over(history(SCORES[:n]), settings))
    assert done == last_epoch
    assert has_stopped_early(history(SCORES[:done]), settings) == (done < 7)


def test_the_plateau_schedule_falls_after_its_epochs_and_then_waits_anew() -> None:
    optimizer = OptimizerSettings(schedule="plateau", plateau_epochs=2, step_factor=0.1)
    worse = [0.5, 0.4, 0.4, 0.4, 0.4, 0.6, 0.6]  # two bad epochs, two more, a new best, one bad
    found = [plateau_factor(history(worse[:n]), optimizer, WatchSettings()) for n in range(len(worse) + 1)]
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
