"""What a person sees while training runs: worker 0's steps and epochs, on the terminal of whoever started the job.

Workers may be on other machines, whose output Ray would mix with its own. So worker 0 posts events to a small
actor, and a thread beside the driver's wait prints them: a live bar in a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from jobs.cli.progress import SECONDS_BETWEEN_LINES, format_seconds
from jobs.cli.tracebacks import FOLDER
from jobs.storage.folder import Folder
from jobs.training.failures import Failure, FailureLog, Position

_POLL_SECONDS = 0.5


class EventMailbox:
    """The events that worker 0 has posted and the driver has not yet taken. Runs as a Ray actor without a CPU."""

    def __init__(self, max_failures: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.failures = FailureLog(max_failures)

    def at(self, rank: int, position: Position) -> None:
        """A worker has come to a position."""
        self.failures.at(rank, position)

    def raised(self, rank: int, failure: Failure) -> None:
        """A worker is about to raise an exception."""
        self.failures.raised[rank] = failure

    def saved(self, step: int) -> None:
        """A checkpoint is stored."""
        self.failures.saved(step)

    def failed(self, errors: dict[int, tuple[str, bool]]) -> bool:
        """Ray Train has seen workers fail; whether it is the same failure again."""
        event = self.failures.add(errors)
        self.events.append(event)
        return bool(event["repeated"])

    def last_failure(self) -> dict[str, Any] | None:
        """The newest failure's event."""
        return self.failures.last

    def post(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        events, self.events = self.events, []
        return events


class TrainProgress:
    """Prints a run's progress for as long as the `with` lasts. `mailbox` is the actor handle for the workers.

    Args:
        keep: called with the rows of all finished epochs, when there is one more.
        run: the run's folder, for the tracebacks of failures.
        max_failures: restarts that are allowed.
    """

    def __init__(self, keep: Callable[[list[dict[str, Any]]], None], run: str, max_failures: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On this machine, since others may be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(EventMailbox).remote(max_failures)
        self._keep = keep
        self._folder = Folder.of(run) / FOLDER
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar: Any = None
        self._task: Any = None
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> TrainProgress:
        if sys.stderr.isatty():
            self._start_bar()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        if self._bar is not None:
            self._bar.stop()

    def _watch(self) -> None:
        import ray

        last = False
        while not last:
            last = self._stop.wait(_POLL_SECONDS)  # after the end, once more for what came meanwhile
            try:
                events = ray.get(self.mailbox.take.remote(), timeout=60 if last else None)
            except ray.exceptions.RayError:
                return  # the cluster is gone, and the driver will say so
            for event in events:
                self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if "failure" in event:
            self._say(self._describe_failure(event))
            return
        if "text" in event:
            self._say(event["text"])
            if "history" in event:
                self._keep(event["history"])
            return
        text = f"loss {event['loss']:.3f}, {event['captions_per_second']:,.0f} captions/s"
        left = format_seconds(event["seconds_left"]) + " left"
        if self._bar is not None:
            self._bar.update(self._task, completed=event["step"], total=event["num_steps"], text=text, left=left)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            place = f"epoch {event['epoch']}/{event['epochs']}, step {event['step']:,}/{event['num_steps']:,}"
            self._say(f"{place}, {text}, {left}")

    def _describe_failure(self, event: dict[str, Any]) -> str:
        """One line; the traceback goes into a file that it names."""
        try:
            self._folder.write(event["file"], event["trace"].encode())
            trace = f"Traceback: {self._folder.url}/{event['file']}"
        except OSError as error:
            trace = f"Its traceback could not be written: {error}"
        return f"{event['worker']} failed {event['where']}: {event['failure']['error']}. {event['then']}. {trace}"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", total=None, text="starting the workers", left="")
        self._bar.start()
