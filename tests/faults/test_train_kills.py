"""A training that is killed, within an epoch and between two, ends as if nothing had been."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_training import arguments, newest_checkpoint, write_dataset

from .harness import PATIENCE, ROOT, Place
from .processes import Session, wait_until

pytestmark = pytest.mark.slow

# All that has a state of its own: dropout, averaged weights, a schedule that goes by dev scores, drawn captions.
SETTINGS = [
    *("--training.epochs", "4", "--training.images-per-step", "6", "--training.ema-decay", "0.9"),
    *("--training.optimizer.learning-rate", "0.01", "--training.optimizer.schedule", "plateau"),
    *("--training.optimizer.plateau-epochs", "1", "--training.watch.min-change", "5"),
    *("--training.self-critical.weight", "0.5", "--training.self-critical.num-samples", "2"),
    *("--training.captions", "random"),
]
TIMES = {"seconds", "train_seconds", "captions_per_second"}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_dataset(tmp_path, num_train=60, num_dev=6)
    return tmp_path


def start(place: Place, dataset: Path, run: Path, name: str, *more: str) -> Session:
    command = [sys.executable, "-m", "jobs.train", *arguments(dataset, str(run), *SETTINGS, *more)]
    return Session(command, env=place.env({"RAY_worker_niceness": "0"}), log=place.folder / f"{name}.log", cwd=ROOT)


def kill_when(
    place: Place, dataset: Path, run: Path, name: str, when: Callable[[dict[str, Any]], bool], *more: str
) -> str:
    """Start the training and kill all of its processes as soon as its newest checkpoint is like that."""
    job = start(place, dataset, run, name, *more)
    try:
        assert wait_until(lambda: when(newest_checkpoint(run)) or not job.is_running, PATIENCE, pause=0.01)
        assert job.is_running, job.log.read_text()
    finally:
        job.end()
    return job.log.read_text()


def final_state(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = newest_checkpoint(run)["folder"]
    history = json.loads((folder / "history.json").read_text())
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in history]
    return torch.load(folder / "state.pt", weights_only=True)["learner"], rows


@pytest.mark.parametrize(("num_workers", "tolerance"), [(1, 0.0), (2, 1e-6)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    num_workers: int, tolerance: float, dataset: Path, tmp_path: Path
) -> None:
    place = Place.make(tmp_path / "place")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    workers = ("--num-workers", str(num_workers))
    start(place, dataset, whole, "whole", *workers).finish(PATIENCE)

    every_step = ("--checkpoint-minutes", "0.0001", *workers)
    within = kill_when(
        place, dataset, killed, "first",
        lambda newest: newest.get("epoch") == 1 and newest["score"] < 0 and newest["step"] >= 13,
        *every_step,
    )  # fmt: skip
    assert "epoch 1/4" in within
    at = newest_checkpoint(killed)
    only_at_ends = ("--checkpoint-minutes", "0", *workers)
    between = kill_when(place, dataset, killed, "second", lambda newest: newest.get("epoch", 0) >= 3, *only_at_ends)
    assert f"going on after epoch 1 of 4 and {at['step'] - 10} of 10 steps of the next" in between
    rest = start(place, dataset, killed, "third", *workers).finish(PATIENCE)
    assert "going on after epoch 3 of 4\n" in rest

    (expected, expected_rows), (state, rows) = final_state(whole), final_state(killed)
    assert state["step_number"] == expected["step_number"] == 40
    for part in ("decoder", "average"):
        for name, value in expected[part].items():
            torch.testing.assert_close(state[part][name], value, atol=tolerance, rtol=0)
    assert len(rows) == len(expected_rows) == 4
    for row, expected_row in zip(rows, expected_rows, strict=True):
        numbers, expected_numbers = ({k: v for k, v in r.items() if k != "dev_captions"} for r in (row, expected_row))
        assert numbers == (pytest.approx(expected_numbers, abs=1e-4) if tolerance else expected_numbers)
        assert row["dev_captions"] == expected_row["dev_captions"]
    if tolerance == 0:
        assert torch.equal(state["rng"], expected["rng"])
    assert expected_rows[-1]["learning_rate"] < expected_rows[0]["learning_rate"], "the schedule was not tried"
    assert "reward" in expected_rows[-1]
    shutil.rmtree(place.ray_folder, ignore_errors=True)


def test_ctrl_c_ends_it_in_a_sentence_and_it_can_be_gone_on_with(dataset: Path, tmp_path: Path) -> None:
    place, run = Place.make(tmp_path / "place"), tmp_path / "run"
    job = start(place, dataset, run, "interrupted", "--checkpoint-minutes", "0.0001", "--training.epochs", "400")
    try:
        assert wait_until(lambda: newest_checkpoint(run).get("step", 0) > 3 or not job.is_running, PATIENCE)
        job.interrupt()
        code = job.wait(120)
    finally:
        job.end()
    log = job.log.read_text()
    assert code == 130, log
    assert "Traceback" not in log
    assert log.strip().splitlines()[-1].endswith("run the same command again to resume")
    shutil.rmtree(place.ray_folder, ignore_errors=True)
