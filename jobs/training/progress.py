"""Shows the progress of training on the terminal of the user who started the job.

Workers may run on other machines, and Ray would mix their output with its own. Worker 0 therefore posts events to a
small actor, and a thread of the driver prints them: a live bar in a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from captionlib.storage.folder import Folder
from jobs.cli.progress import format_seconds
from jobs.cli.progress_bar import ProgressBar
from jobs.cli.tracebacks import FOLDER
from jobs.training.failures import Failure, FailureLog, Position

_POLL_SECONDS = 0.5


class EventMailbox:
    """Stores events until the driver takes them. Runs as a Ray actor without a CPU."""

    def __init__(self, max_failures: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.failures = FailureLog(max_failures)

    def at(self, rank: int, position: Position) -> None:
        """Record the position of a worker."""
        self.failures.at(rank, position)

    def raised(self, rank: int, failure: Failure) -> None:
        """Record the exception that a worker is about to raise."""
        self.failures.raised[rank] = failure

    def saved(self, step: int) -> None:
        """Record that a checkpoint was stored."""
        self.failures.saved(step)

    def failed(self, errors: dict[int, tuple[str, bool]]) -> bool:
        """Record that workers failed; return whether the failure is a repetition."""
        event = self.failures.add(errors)
        self.events.append(event)
        return bool(event["repeated"])

    def last_failure(self) -> dict[str, Any] | None:
        """Return the event of the latest failure."""
        return self.failures.last

    def post(self, event: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append(event)

    def take(self) -> list[dict[str, Any]]:
        """Return all events since the last call."""
        events, self.events = self.events, []
        return events


class TrainProgress:
    """Prints the progress of a run within a `with` block. `mailbox` is the actor handle for the workers.

    Args:
        keep: called with the rows of all finished epochs after each epoch.
        run: folder of the run, for tracebacks.
        max_failures: number of restarts that are allowed.
    """

    def __init__(self, keep: Callable[[list[dict[str, Any]]], None], run: str, max_failures: int) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # The actor runs on this machine, because others may be lost.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(EventMailbox).remote(max_failures)
        self._keep = keep
        self._folder = Folder.of(run) / FOLDER
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar = ProgressBar("training", text="starting the workers")

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        self._bar.stop()

    def _watch(self) -> None:
        import ray

        last = False
        while not last:
            last = self._stop.wait(_POLL_SECONDS)  # after the end, events are taken once more
            try:
                events = ray.get(self.mailbox.take.remote(), timeout=60 if last else None)
            except ray.exceptions.RayError:
                return  # the cluster is gone, which the driver reports
            for event in events:
                self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        if "failure" in event:
            self._bar.say(self._describe_failure(event))
            return
        if "text" in event:
            self._bar.say(event["text"])
            if "history" in event:
                self._keep(event["history"])
            return
        text = f"loss {event['loss']:.3f}, {event['captions_per_second']:,.0f} captions/s"
        left = format_seconds(event["seconds_left"]) + " left"
        place = f"epoch {event['epoch']}/{event['epochs']}, step {event['step']:,}/{event['num_steps']:,}"
        self._bar.show(
            lambda: f"{place}, {text}, {left}", total=event["num_steps"], completed=event["step"], text=text, left=left
        )

    def _describe_failure(self, event: dict[str, Any]) -> str:
        """Describe a failure in one line, and store its traceback in a file that the line names."""
        try:
            self._folder.write(event["file"], event["trace"].encode())
            trace = f"Traceback: {self._folder.url}/{event['file']}"
        except OSError as error:
            trace = f"Its traceback could not be written: {error}"
        return f"{event['worker']} failed {event['where']}: {event['failure']['error']}. {event['then']}. {trace}"
