"""A worker that fails says so, goes on from its checkpoint, and stops where the same failure comes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from failing_training import failing

from jobs.train import main
from jobs.training import worker
from jobs.training.failures import FailureLog, Position, from_exception
from tests.tiny_training import arguments, write_dataset

PHASES = ("data", "step", "dev evaluation", "checkpoint", "report")
MIXED = dict(zip(PHASES, ("exception", "memory", "cuda memory", "killed", "exception"), strict=True))


def train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: dict[str, str], times: int = 1, after: int = 0
) -> int:
    write_dataset(tmp_path, num_train=24, num_dev=6)
    (tmp_path / "faults").mkdir()
    monkeypatch.setattr(worker, "train_worker", failing(faults, tmp_path / "faults", times=times, after=after))
    more = ["--training.epochs", "2", "--training.images-per-step", "6", "--max-failures", "6"]
    return main(arguments(tmp_path, str(tmp_path / "run"), *more))


def lines_of_failures(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("worker ")]


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_each_phase_fails_once_and_training_ends_well(tmp_path, monkeypatch, capsys):
    assert train(tmp_path, monkeypatch, MIXED) == 0
    printed = capsys.readouterr().err
    lines = lines_of_failures(printed)
    print(*lines, sep="\n")
    assert len(lines) == len(PHASES), printed
    for phase, line in zip(PHASES, lines, strict=True):
        assert f"{phase})" in line
        assert "restarts left" in line or "restart left" in line
        file = Path(line.rpartition("Traceback: ")[2])
        assert file.parent == tmp_path / "run" / "failures"
        if MIXED[phase] == "killed":
            assert "its process died without an exception" in line
        else:
            assert f"injected into {phase}" in line
            assert "Traceback (most recent call last)" in file.read_text()
    assert [row["epoch"] for row in json.loads((tmp_path / "run" / "metrics.json").read_text())] == [1, 2]


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_the_same_failure_again_stops(tmp_path, monkeypatch, capsys):
    assert train(tmp_path, monkeypatch, {"dev evaluation": "exception"}, times=9) == 1
    printed = capsys.readouterr().err
    assert len(lines_of_failures(printed)) == 2, printed
    assert "the same error twice at step 4 (epoch 1, dev evaluation): KeyError: 'injected into dev" in printed
    assert len(list((tmp_path / "run" / "failures").iterdir())) == 2


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_failure_in_a_later_epoch_resumes_from_the_checkpoint(tmp_path, monkeypatch, capsys):
    assert train(tmp_path, monkeypatch, {"dev evaluation": "cuda memory"}, after=1) == 0
    (line,) = lines_of_failures(capsys.readouterr().err)
    assert "failed at step 8 (epoch 2, dev evaluation): torch.OutOfMemoryError: CUDA out of memory" in line
    assert "Restarting from the checkpoint of step 4; 5 more restarts left" in line
    assert [row["epoch"] for row in json.loads((tmp_path / "run" / "metrics.json").read_text())] == [1, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two_cpus")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["exception", "killed", "memory"])
def test_every_phase_stops_when_it_fails_again(tmp_path, monkeypatch, capsys, phase, kind):
    assert train(tmp_path, monkeypatch, {phase: kind}, times=9) == 1
    printed = capsys.readouterr().err
    print(printed)
    assert len(lines_of_failures(printed)) == 2, printed


def failure(text: str = "boom 1", step: int = 3, phase: str = "step"):
    return from_exception(ValueError(text), Position(phase, step, 1, "n"))


def test_what_counts_as_the_same_failure():
    assert failure("boom 1").is_like(failure("boom 22"))
    assert not failure().is_like(failure("bang"))
    assert not failure().is_like(failure(step=4))
    assert not failure().is_like(failure(phase="data"))


def test_a_dead_worker_is_the_cause_of_the_others_errors():
    log = FailureLog(max_failures=1)
    log.at(1, Position("step", 7, 2, "node-b"))
    log.raised[0] = failure("Connection closed by peer")
    event = log.add({0: ("Connection closed by peer", False), 1: ("The actor died", True)})
    assert (event["worker"], event["repeated"]) == ("worker 1 on node-b", False)
    assert event["where"] == "at about step 7 (epoch 2, step)"
    assert event["then"] == "Restarting from the beginning; 0 more restarts left"
    assert "Connection closed by peer" in event["trace"]


def test_no_restart_is_left():
    log = FailureLog(max_failures=0)
    log.raised[0] = failure()
    assert log.add({0: ("boom", False)})["then"] == "No restarts remain: training stops"
