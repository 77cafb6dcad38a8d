"""Training on two Ray nodes, of which one loses its worker and then itself: as many steps, and as good captions."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_training import arguments, newest_checkpoint, write_dataset

from .cluster import Cluster, cluster
from .harness import PATIENCE, ROOT, Place
from .processes import Session, kill, wait_until

pytestmark = pytest.mark.slow

EPOCHS, STEPS_PER_EPOCH = 3, 100
WORKER = r"^ray::.*RayTrainWorker"


def start(place: Place, nodes: Cluster, dataset: Path, run: Path) -> Session:
    more = [
        # A worker that starts again would drop out other units, and another run's scores mean little then.
        *("--decoder.dropout", "0", "--training.ema-decay", "0.9"),
        *("--training.epochs", str(EPOCHS), "--training.images-per-step", "6"),
        *("--training.optimizer.learning-rate", "0.003", "--checkpoint-minutes", "0.01"),
        *("--num-workers", "2", "--min-workers", "1", "--address", nodes.address),
    ]
    env = {**place.env({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}), "RAY_TMPDIR": str(nodes.folder)}
    command = [sys.executable, "-m", "jobs.train", *arguments(dataset, str(run), *more)]
    return Session(command, env=env, log=place.folder / f"{run.name}.log", cwd=ROOT)


def metrics(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "metrics.json").read_text()))


def test_a_worker_and_a_node_are_killed(tmp_path: Path) -> None:
    write_dataset(tmp_path, num_train=6 * STEPS_PER_EPOCH, num_dev=30)
    place = Place.make(tmp_path / "place")
    env = place.env({"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"})
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    with cluster(env, place.folder) as nodes:
        nodes.start("head", num_cpus=1)
        other = nodes.start("other", num_cpus=1)
        start(place, nodes, tmp_path, undisturbed).finish(PATIENCE)

        job = start(place, nodes, tmp_path, disturbed)
        try:
            began = time.monotonic()

            def reached(step: int) -> bool:
                return newest_checkpoint(disturbed).get("step", 0) >= step

            assert wait_until(lambda: reached(30) or not job.is_running, PATIENCE)
            (worker,) = other.find(WORKER)
            at_worker = newest_checkpoint(disturbed)["step"]
            assert kill(worker)
            assert wait_until(lambda: reached(STEPS_PER_EPOCH + 30) or not job.is_running, PATIENCE)
            assert job.is_running, job.log.read_text()
            at_node = newest_checkpoint(disturbed)["step"]
            other.end()
            log = job.finish(PATIENCE)
        finally:
            job.end()
    print(
        f"\nworker killed at step {at_worker}, node at {at_node}; {time.monotonic() - began:.0f} s\n"
        f"undisturbed {[round(row['cider_d'], 3) for row in metrics(undisturbed)]}, "
        f"disturbed {[round(row['cider_d'], 3) for row in metrics(disturbed)]}"
    )
    assert at_worker < STEPS_PER_EPOCH < at_node < EPOCHS * STEPS_PER_EPOCH
    assert log.count("going on after epoch") >= 2, log
    assert [row["step"] for row in metrics(disturbed)] == [STEPS_PER_EPOCH * n for n in range(1, EPOCHS + 1)]
    last, expected = metrics(disturbed)[-1], metrics(undisturbed)[-1]
    assert expected["cider_d"] > 1.0
    assert last["dev_loss"] == pytest.approx(expected["dev_loss"], abs=0.05)
    # Sums of one worker's and of two are rounded apart, and of 30 dev images each is a thirtieth of the score.
    assert last["cider_d"] == pytest.approx(expected["cider_d"], rel=0.01)
    assert (disturbed / "best" / "config.json").is_file()
