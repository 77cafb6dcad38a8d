"""Training workers in which chosen phases fail: patches the worker's process, and then runs the real worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ERRORS: dict[str, Callable[[str], Exception]] = {
    "exception": lambda phase: KeyError(f"injected into {phase}"),
    "memory": lambda phase: MemoryError(f"injected into {phase}"),
    "cuda memory": lambda phase: _cuda_memory(phase),
}


def _cuda_memory(phase: str) -> Exception:
    import torch

    return torch.OutOfMemoryError(f"CUDA out of memory: injected into {phase}")


def failing(
    faults: Mapping[str, str], folder: Path, *, times: int = 1, after: int = 0
) -> Callable[[dict[str, Any]], str | None]:
    """A worker function whose phases fail so many times each; `faults` says how, by phase.

    Args:
        folder: counts the failures, since each attempt is a new process.
        after: calls of a phase that succeed in each process before it fails.
    """

    def train_worker(config: dict[str, Any]) -> str | None:
        from failing_training import inject

        inject(faults, folder, times, after)
        from jobs.training.worker import train_worker as real

        return real(config)

    return train_worker


def inject(faults: Mapping[str, str], folder: Path, times: int, after: int) -> None:
    """Patch what each phase calls."""
    import ray.train
    import torch

    from captionlib.training.learner import Learner
    from jobs.training.dev_evaluation import DevEvaluation
    from jobs.training.worker import FeatureViews  # type: ignore[attr-defined]

    places = {
        "data": (FeatureViews, "load"),
        "step": (Learner, "step"),
        "dev evaluation": (DevEvaluation, "evaluate"),
        "checkpoint": (torch, "save"),
        "report": (ray.train, "report"),
    }
    for phase, kind in faults.items():
        owner, name = places[phase]
        setattr(owner, name, _failing(getattr(owner, name), phase, kind, folder, times, after))


def _failing(real: Callable, phase: str, kind: str, folder: Path, times: int, after: int) -> Callable:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= after:
            return real(*args, **kwargs)
        for number in range(times):
            marker = folder / f"{phase}-{number}"
            if not marker.exists():
                marker.touch()
                if kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ERRORS[kind](phase)
        return real(*args, **kwargs)

    return call
