"""Reports failures of training workers: the position and the error of each worker, and whether a restart can help.

Workers send their position and their exceptions to the `EventMailbox`. Ray Train's controller sends it the list of
failed workers, killed ones included. The mailbox finds the cause, and the driver prints it.
"""

from __future__ import annotations

import socket
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from ray.train import UserCallback

from jobs.cli.tracebacks import last_line, without_numbers

_MACHINE_LOST = "its machine was lost"


@dataclass(frozen=True)
class Position:
    """Position of a worker in its run."""

    phase: str = "start"
    """One of start, data, step, dev evaluation, checkpoint, report."""
    step: int = 0
    """Number of optimizer steps since the start of the run."""
    epoch: int = 0
    """Epoch counted from 1; 0 at the start."""
    node: str = ""


@dataclass(frozen=True)
class Failure:
    """An error of one worker."""

    position: Position
    error: str
    """Last line of the exception with its type, or how the process ended."""
    trace: str
    died: bool = False
    """Whether the process ended without an exception."""

    def is_like(self, other: Failure | None) -> bool:
        """Whether it is the same error in the same phase at the same step."""
        if other is None or self.died != other.died or self.position.phase != other.position.phase:
            return False
        if self.error == _MACHINE_LOST:  # a lost machine is not the fault of the run, however often it happens
            return False
        same_text = without_numbers(self.error) == without_numbers(other.error)
        # The position of a process that was killed is the last one that it could send.
        tolerance = 1 if self.died else 0
        return same_text and abs(self.position.step - other.position.step) <= tolerance


def from_exception(error: BaseException, position: Position) -> Failure:
    """Create the failure for the exception that is being handled on a worker."""
    return Failure(position, last_line(error), "".join(traceback.format_exception(error)))


class FailureLog:
    """Determines the cause of each failed attempt, and whether it is a repetition.

    Args:
        max_failures: number of restarts that are allowed; negative for no limit.
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.positions: dict[int, Position] = {}
        """Latest known position by rank."""
        self.raised: dict[int, Failure] = {}
        """Exceptions of the current attempt by rank, in order of arrival."""
        self.previous: Failure | None = None
        self.num_failures = 0
        self.num_steps_saved = 0
        self.last: dict[str, Any] | None = None

    def at(self, rank: int, position: Position) -> None:
        """Record the position of a worker."""
        self.positions[rank] = position
        if position.phase == "start":
            self.raised.pop(rank, None)
            # A worker starts at the step of the last checkpoint, which may come from an earlier run in the same folder.
            self.num_steps_saved = max(self.num_steps_saved, position.step)

    def saved(self, step: int) -> None:
        """Record that a checkpoint was stored."""
        self.num_steps_saved = step

    def add(self, errors: dict[int, tuple[str, bool]]) -> dict[str, Any]:
        """Record a failed attempt, and return the event for the driver, which states what happens next.

        Args:
            errors: by rank, the text of the error and whether the process died.
        """
        dead = [rank for rank, (_, died) in errors.items() if died]
        # When a process dies, the other workers raise exceptions as a consequence, so the dead one is the cause.
        rank = dead[0] if dead else next(iter(self.raised), min(errors))
        if rank in self.raised and not dead:
            failure = self.raised[rank]
        else:
            text = errors[rank][0]
            shown = _how_it_died(text) if dead else text.strip().splitlines()[-1]
            failure = Failure(self.positions.get(rank, Position()), shown, text, died=bool(dead))
        self.num_failures += 1
        is_repeated = failure.is_like(self.previous)
        self.previous = failure
        unlimited = self.max_failures < 0
        left = self.max_failures - self.num_failures
        place = failure.position
        where = f"at {'about ' if failure.died else ''}step {place.step}"
        where += f" ({f'epoch {place.epoch}, ' if place.epoch else ''}{place.phase})"
        start = f"from the checkpoint of step {self.num_steps_saved}" if self.num_steps_saved else "from the beginning"
        if is_repeated:
            then = "The same error at the same place as before: training stops"
        elif left < 0 and not unlimited:
            then = "No restarts remain: training stops"
        else:
            count = "any number of" if unlimited else str(left)
            then = f"Restarting {start}; {count} more restart{'' if left == 1 else 's'} left"
        others = "".join(
            f"\n--- worker {other} ---\n{self.raised[other].trace if other in self.raised else text}"
            for other, (text, _) in errors.items()
            if other != rank
        )
        self.last = {
            "failure": asdict(failure),
            "worker": f"worker {rank} on {place.node or 'an unknown machine'}",
            "where": where,
            "then": then,
            "repeated": is_repeated,
            "file": f"{time.strftime('%Y%m%dT%H%M%S')}-{self.num_failures}-worker-{rank}.txt",
            "trace": failure.trace + others,
        }
        self.raised.clear()
        return self.last


def _how_it_died(text: str) -> str:
    if "node has died" in text or "node was terminated" in text or "died because its node" in text:
        return _MACHINE_LOST
    if "low on memory" in text or "OutOfMemory" in text:
        return "Ray killed its process, because the machine was low on memory"
    return "its process died without an exception (killed, perhaps for want of memory)"


class FailureCallback(UserCallback):
    """Runs in the controller of Ray Train: forwards failures to the mailbox, and stops the run at a repetition."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called by Ray Train after a report of the workers."""
        if checkpoint is not None:
            self.mailbox.saved.remote(metrics[0]["step"])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train after workers have failed.

        Raises:
            RuntimeError: the failure is a repetition; Ray Train does not restart after errors of callbacks.
        """
        import ray

        errors = {
            rank: (str(error) or type(error).__name__, type(error).__name__.startswith("WorkerHealthCheck"))
            for rank, error in worker_exceptions.items()
        }
        if ray.get(self.mailbox.failed.remote(errors)):
            raise RuntimeError("the same failure at the same place")


def position_of(phase: str, step: int, epoch: int) -> Position:
    """Create a position on this machine."""
    return Position(phase, step, epoch, socket.gethostname())
