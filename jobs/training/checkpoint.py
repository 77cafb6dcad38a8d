"""Saves and restores the state of a training run as a checkpoint of Ray Train, at the end of an epoch or within one.

Its folder contains state.pt (weights, optimizer, averaged weights, random generators, sums of the unfinished epoch) and
history.json (one row per finished epoch).
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from captionlib.training.learner import Learner

STATE, HISTORY = "state.pt", "history.json"
SCORE = "score"
"""The metric by which Ray Train selects the best checkpoint."""
_NO_SCORE = -1.0  # score of a checkpoint within an epoch; lower than any CIDEr-D, which is never negative


@dataclass
class EpochSums:
    """Sums over the steps of the current epoch on this worker."""

    steps: int = 0
    loss: float = 0.0
    """Cross-entropy summed over words, in nats."""
    words: int = 0
    reward: float = 0.0
    """Sum over steps of the mean reward."""
    rewards: int = 0
    """Number of steps with rewards."""
    captions: int = 0
    """Number of captions learnt on this worker."""
    seconds: float = 0.0

    def merged(self, world_size: int) -> EpochSums:
        """Return the sums over all workers."""
        if world_size == 1:
            return dataclasses.replace(self)
        names = ("loss", "words", "reward", "rewards", "captions")
        sums = dict(zip(names, add_up([float(getattr(self, name)) for name in names], world_size), strict=True))
        return EpochSums(
            steps=self.steps,
            loss=sums["loss"],
            words=round(sums["words"]),
            reward=sums["reward"],
            rewards=round(sums["rewards"]),
            captions=round(sums["captions"]),
            seconds=self.seconds,
        )


@dataclass
class TrainingState:
    """Position of a run: finished epochs, and steps of the unfinished one."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One row of metrics per finished epoch."""
    sums: EpochSums = field(default_factory=EpochSums)
    """Sums of the unfinished epoch."""


def add_up(values: list[float], world_size: int) -> list[float]:
    """Sum each value over all workers."""
    sums = torch.tensor(values, dtype=torch.float64)
    if world_size > 1:
        if dist.get_backend() == "nccl":
            sums = sums.cuda()
        dist.all_reduce(sums)
    return [float(value) for value in sums]


def save(
    learner: Learner, standing: TrainingState, row: dict[str, Any] | None, rank: int, enter: Callable[[str], None]
) -> None:
    """Report a checkpoint to Ray Train. All workers must call this together.

    Args:
        row: metrics of the epoch that has just ended; None within an epoch.
        enter: called with the name of each phase when it begins.
    """
    import ray.train

    enter("checkpoint")
    world_size = learner.world_size
    generators = [_random_state()]
    if world_size > 1:
        generators = [{}] * world_size
        dist.all_gather_object(generators, _random_state())
    sums = standing.sums.merged(world_size)
    epoch, step = len(standing.history), learner.step_number
    metrics = {"epoch": epoch, "step": step, SCORE: _NO_SCORE} if row is None else {**row, "step": step}
    if rank != 0:
        enter("report")
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        state = {"learner": learner.state_dict(), "generators": generators, "sums": dataclasses.asdict(sums)}
        torch.save(state, Path(directory) / STATE)
        (Path(directory) / HISTORY).write_text(json.dumps(standing.history))
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        enter("report")
        ray.train.report(metrics, checkpoint=checkpoint)


def restore(learner: Learner, rank: int) -> TrainingState:
    """Restore the run's newest checkpoint, if there is one."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainingState()
    with checkpoint.as_directory() as directory:
        state, history = load(directory)
    learner.load_state_dict(state["learner"])
    if rank < len(state["generators"]):  # an additional worker keeps its own random state
        _set_random_state(state["generators"][rank])
    sums = EpochSums(**state["sums"])
    # The sums will be added over the workers again, so only one worker continues from the stored ones.
    return TrainingState(history, sums if rank == 0 else EpochSums(steps=sums.steps, seconds=sums.seconds))


def load(directory: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load the state and the history of a checkpoint."""
    state = torch.load(Path(directory) / STATE, map_location="cpu", weights_only=True)
    return state, json.loads((Path(directory) / HISTORY).read_text())


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
