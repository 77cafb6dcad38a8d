"""Runs training on Ray: starts workers on the cluster, resumes an existing run, and returns Ray Train's result."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from captionlib.config import to_dict
from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from captionlib.storage.read import filesystem
from jobs.cli.errors import JobIncomplete
from jobs.cli.tracebacks import FOLDER
from jobs.cluster.session import RaySession
from jobs.outputs.run_record import differences
from jobs.training.data import Prepared
from jobs.training.settings import TrainSettings

BEST = "best"
"""Name of the exported checkpoint's folder within the folder of the run."""
_SETTINGS_FILE = "settings.json"
_RECORD = "checkpoint_manager_snapshot.json"  # Ray Train's record of complete checkpoints
# Settings that may differ when a run is resumed, because they change where the work is done and not what is learnt.
# Locations of data are among them: `Prepared.identity` identifies the data by its content.
_MAY_DIFFER = {
    *("address", "num_workers", "min_workers", "cpus_per_worker", "use_gpu", "max_failures", "checkpoint_minutes"),
    *("run", "config", "source", "also_features", "start_from", "teachers"),
}
_DATA_MAY_DIFFER = {"root", "captions_file", "objects_file"}


def check_run(settings: TrainSettings, prepared: Prepared) -> bool:
    """Check that the run's folder is writable and does not contain a run with other settings, and store the settings
    there.

    Returns:
        Whether the run is already finished.

    Raises:
        UserError: the settings differ, or the folder cannot be written.
    """
    mine = {name: value for name, value in to_dict(settings).items() if name not in _MAY_DIFFER}
    mine["encoder"] = {name: value for name, value in mine["encoder"].items() if name != "checkpoint"}
    mine["data"] = {name: value for name, value in mine["data"].items() if name not in _DATA_MAY_DIFFER}
    mine["views"] = 1 + len(settings.also_features)
    mine["input"] = prepared.identity()
    folder = Folder.of(settings.run)
    try:
        if folder.exists(_SETTINGS_FILE):
            differing = differences(json.loads(folder.read(_SETTINGS_FILE)), mine)
            if differing:
                raise UserError(
                    f"{settings.run} contains a run with other settings ({'; '.join(differing[:3])}): "
                    "train into another folder, or delete that one"
                )
            return (folder / BEST).exists("config.json")
        folder.check_writable()
        folder.write(_SETTINGS_FILE, json.dumps(mine, indent=2).encode())
        return False
    except OSError as error:
        raise UserError(f"the run's folder {settings.run} cannot be written: {error}") from error


KEEP_FREED_MEMORY = {
    # One heap for all threads, because the training thread is not the first thread.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""Environment variables for the GNU C library. A training step on a CPU allocates and frees hundreds of tensors of
several megabytes. By default the library returns them to the system, and a quarter of the time is spent on getting
zeroed pages again. Other C libraries ignore these variables."""


def clean(run: str) -> None:
    """Delete checkpoint folders that a killed run left incomplete, i.e. those that Ray Train's snapshot does not
    list.
    """
    folder = Folder.of(run)
    fs = filesystem(folder.url)
    if not fs.isdir(folder.url):
        return
    record = folder.read(_RECORD).decode() if folder.exists(_RECORD) else ""
    for item in fs.ls(folder.url, detail=True):
        name = item["name"].rstrip("/").rpartition("/")[2]
        if item["type"] == "directory" and name.startswith("checkpoint_") and name not in record:
            fs.rm(item["name"], recursive=True)


def fit(settings: TrainSettings, prepared: Prepared, keep: Callable[[list[dict[str, Any]]], None]) -> Any:
    """Train on the cluster and return Ray Train's result.

    Args:
        keep: called with the rows of all finished epochs after each epoch.

    Raises:
        jobs.cluster.session.ClusterError: there is no cluster.
        UserError: the cluster lacks the resources.
        JobIncomplete: a worker reported wrong data or a non-finite loss, or workers failed too often.
    """
    with RaySession(settings.address) as session:
        cpus = _cpus_per_worker(settings, [node.cpus for node in session.nodes()])
        return _fit(settings, prepared, cpus, keep)


def _fit(settings: TrainSettings, prepared: Prepared, cpus: int, keep: Callable[[list[dict[str, Any]]], None]) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    from jobs.training.checkpoint import SCORE
    from jobs.training.failures import FailureCallback
    from jobs.training.progress import TrainProgress
    from jobs.training.worker import train_worker

    elastic = None if settings.min_workers is None else (settings.min_workers, settings.num_workers)
    with TrainProgress(keep, settings.run, settings.max_failures) as progress:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"prepared": prepared, "cpus_per_worker": cpus, "mailbox": progress.mailbox},
            scaling_config=ScalingConfig(
                num_workers=elastic or settings.num_workers,
                use_gpu=settings.use_gpu,
                resources_per_worker={"CPU": cpus} | ({"GPU": 1} if settings.use_gpu else {}),
            ),
            run_config=RunConfig(
                **_storage(settings),
                # Keeps the best checkpoint; Ray also keeps the newest.
                checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
                callbacks=[FailureCallback(progress.mailbox)],
            ),
        )
        try:
            result = _interruptible(trainer.fit)
        except TrainingFailedError as error:
            last = ray.get(progress.mailbox.last_failure.remote())
            if last is not None and last["repeated"]:
                raise JobIncomplete(
                    f"the same error twice {last['where']}: {last['failure']['error']}. Another restart would not "
                    f"help. Look at {settings.run}/{FOLDER}/{last['file']} and remove the cause; the same "
                    f"command then resumes from the last checkpoint in {settings.run}"
                ) from error
            causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
            last_line = (str(causes[0]).strip().splitlines() or [type(causes[0]).__name__])[-1]
            raise JobIncomplete(
                f"stopped after {settings.max_failures} restarts: {last_line}. The same command resumes from the "
                f"last checkpoint in {settings.run}"
            ) from error
    if result.return_value is not None:
        raise JobIncomplete(result.return_value)
    return result


def _interruptible(fit: Callable[[], Any]) -> Any:
    """Run a function in a thread: in the main thread, Ray Train would handle Ctrl-C itself and end as if it had
    succeeded.
    """
    outcome: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(fit())
        except BaseException as error:  # it is raised again in the main thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if errors:
        raise errors[0]
    return outcome[0]


def _storage(settings: TrainSettings) -> dict[str, Any]:
    """Return where Ray Train stores the run; URLs go through the project's own storage functions."""
    parent, _, name = settings.run.rpartition("/")
    folder = Folder.of(settings.run)
    if folder.is_local:
        return {"storage_path": parent or "/", "name": name}
    import pyarrow.fs

    handler = pyarrow.fs.FSSpecHandler(filesystem(settings.run))
    return {
        "storage_path": parent.partition("://")[2],
        "name": name,
        "storage_filesystem": pyarrow.fs.PyFileSystem(handler),
    }


def _cpus_per_worker(settings: TrainSettings, node_cpus: list[float]) -> int:
    """Divide the CPUs of the cluster equally among the workers."""
    if settings.cpus_per_worker is not None:
        each = settings.cpus_per_worker
    else:
        each = max(1, int(sum(node_cpus) // settings.num_workers))
        if node_cpus:
            each = min(each, max(1, int(max(node_cpus))))
    room = sum(int(cpus // each) for cpus in node_cpus)
    # A cluster may grow until the workers fit; a single machine cannot.
    wanted = settings.min_workers or settings.num_workers
    if settings.address is None and room < wanted:
        raise UserError(
            f"{wanted} workers of {each} CPUs do not fit this machine's {sum(node_cpus):g} CPUs: "
            "lower --num-workers or --cpus-per-worker"
        )
    return each
