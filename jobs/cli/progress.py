"""Counts the images of a batch job, and displays their number, the rate and the remaining time."""

from __future__ import annotations

import time
from types import TracebackType

from jobs.cli.progress_bar import ProgressBar

SECONDS_FOR_A_RATE = 2.0


class Progress:
    """Counts processed images and displays the progress. Use it as a context manager.

    Args:
        planned: number of images of this run and all earlier runs.
        finished: number of images of earlier runs.
        verb: past participle for the display, such as "captioned".
        quiet: count, but display nothing.
    """

    def __init__(self, planned: int, finished: int, verb: str, *, quiet: bool = False) -> None:
        self.planned, self.before, self.verb = planned, finished, verb
        self.done = 0
        self.failed = 0
        self.deferred = 0
        self.started = time.monotonic()
        self.first: tuple[float, int] | None = None  # time of the first committed chunk, and its number of images
        self.last = self.started
        self.rates: list[tuple[float, float]] = []
        """Pairs (seconds since the start, images per second since the previous pair)."""
        self._rated = (0.0, 0)
        self._said = -1
        self._bar = ProgressBar(verb, total=planned, completed=finished, left="starting", quiet=quiet)

    @property
    def images(self) -> int:
        """Number of images processed in this run, failed ones included."""
        return self.done + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since the start of this run, including the start of Ray and loading the model."""
        return time.monotonic() - self.started

    @property
    def start_up_seconds(self) -> float:
        """Seconds until the first chunk was committed."""
        return (self.first[0] if self.first else time.monotonic()) - self.started

    @property
    def images_per_second(self) -> float | None:
        """Rate between the first and the last chunk; None if the time between them is too short to measure."""
        if self.first is None or self.last - self.first[0] < SECONDS_FOR_A_RATE:
            return None
        return (self.images - self.first[1]) / (self.last - self.first[0])

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.is_live and self.images and self._said != self.images:
            self.say(self._line())
        self._bar.stop()

    def add(self, done: int, failed: int, deferred: int = 0) -> None:
        """Count the images of a committed chunk."""
        now = time.monotonic()
        self.done += done
        self.failed += failed
        self.deferred += deferred
        if done + failed:
            self.last = now
            if self.first is None:
                self.first = (now, self.images)
            self._rate(now)
        has_printed = self._bar.show(
            self._line,
            total=self.planned,
            completed=self.before + self.images,
            text=f"{self.images_per_second:.1f} images/s" if self.images_per_second else "",
            failed=f"{self.failed:,} failed" if self.failed else "",
            left=self._time_left(),
        )
        if has_printed:
            self._said = self.images

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self._bar.say(text)

    def _rate(self, now: float) -> None:
        seconds, images = now - self.started, self.images
        # The points are at least a fiftieth of the elapsed time apart, so that the chart of a long run has few of them.
        if seconds - self._rated[0] >= max(2.0, seconds / 50):
            self.rates.append((seconds, (images - self._rated[1]) / (seconds - self._rated[0])))
            self._rated = (seconds, images)

    def _time_left(self) -> str:
        rate = self.images_per_second
        if not rate:
            return ""
        return f"{format_seconds((self.planned - self.before - self.images) / rate)} left"

    def _line(self) -> str:
        parts = [f"{self.before + self.images:,} of {self.planned:,} {self.verb}"]
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.1f} images/s")
        parts.append(f"{self.failed:,} failed")
        if self._time_left():
            parts.append(self._time_left())
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Format a duration for reading: 3725 → "1 h 02 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
