"""The training run on Ray: settings → workers on the cluster → Ray Train's result; resumed when its folder has one."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from captionlib.config import to_dict
from jobs.pipeline import RaySession
from jobs.record import differences
from jobs.train_data import Prepared
from jobs.train_settings import TrainSettings

BEST = "best"
"""The folder of the exported checkpoint, in the run's folder; written when the run is finished."""
_SETTINGS_FILE = "settings.json"
# What may differ between a run and its resumption: it changes where the work is done, not what is learnt.
_MAY_DIFFER = ("address", "num_workers", "cpus_per_worker", "use_gpu", "max_failures", "run", "config")


def check_run(settings: TrainSettings) -> bool:
    """The run's folder can be written, and holds no run of other settings; its settings are stored there.

    Returns:
        Whether the run has been finished before.

    Raises:
        ValueError: what differs, or why it can't be written.
    """
    mine = {name: value for name, value in to_dict(settings).items() if name not in _MAY_DIFFER}
    fs, root = fsspec.core.url_to_fs("/".join(settings.storage()))
    path = f"{root}/{_SETTINGS_FILE}"
    try:
        if fs.exists(path):
            with fs.open(path, "r") as stream:
                differing = differences(json.load(stream), mine)
            if differing:
                raise ValueError(
                    f"{settings.run} holds a run of other settings ({'; '.join(differing[:3])}): "
                    "train into another folder, or delete that one"
                )
            return bool(fs.exists(f"{root}/{BEST}/config.json"))
        fs.makedirs(root, exist_ok=True)
        with fs.open(path, "w") as stream:
            json.dump(mine, stream, indent=2)
        return False
    except OSError as error:
        raise ValueError(f"the run's folder {settings.run} cannot be written: {error}") from error


def fit(settings: TrainSettings, prepared: Prepared) -> Any:
    """Train on the cluster; Ray Train's result.

    Raises:
        ValueError: the cluster has not the resources, or a worker found fault with data or loss.
    """
    with RaySession(settings.address) as session:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from jobs.train_loop import train_worker
        from jobs.train_progress import TrainProgress

        cpus = _cpus_per_worker(settings, [node.cpus for node in session.nodes()])
        storage, name = settings.storage()
        with TrainProgress() as progress:
            trainer = TorchTrainer(
                train_worker,
                train_loop_config={
                    "settings": settings,
                    "vocabulary": prepared.vocabulary.words,
                    "cpus_per_worker": cpus,
                    "board": progress.board,
                },
                scaling_config=ScalingConfig(
                    num_workers=settings.num_workers,
                    use_gpu=settings.use_gpu,
                    resources_per_worker={"CPU": cpus} | ({"GPU": 1} if settings.use_gpu else {}),
                ),
                run_config=RunConfig(
                    name=name,
                    storage_path=storage,
                    checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="score"),
                    failure_config=FailureConfig(max_failures=settings.max_failures),
                ),
            )
            return trainer.fit()


def _cpus_per_worker(settings: TrainSettings, node_cpus: list[float]) -> int:
    """What each worker gets, when every one is to get as much."""
    if settings.cpus_per_worker is not None:
        each = settings.cpus_per_worker
    else:
        each = max(1, int(sum(node_cpus) // settings.num_workers))
        if node_cpus:
            each = min(each, max(1, int(max(node_cpus))))
    room = sum(int(cpus // each) for cpus in node_cpus)
    # A cluster that can grow may yet find room; one machine can't.
    if settings.address is None and room < settings.num_workers:
        raise ValueError(
            f"{settings.num_workers} workers of {each} CPUs do not fit this machine's {sum(node_cpus):g} CPUs: "
            "lower --num-workers or --cpus-per-worker"
        )
    return each
