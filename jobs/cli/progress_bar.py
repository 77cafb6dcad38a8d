"""The progress display of all jobs: a live bar in a terminal, and one plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from captionlib.masking import masked

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Displays how much is done. Nothing is displayed before `start`, or with `quiet`.

    Args:
        title: name of the work, such as "captioned".
        total: number of images or steps; None if it is unknown.
        completed: number that was done before.
        text: what the bar says at the start.
        left: what the bar says at the start in the place of the remaining time.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None = None,
        completed: int = 0,
        text: str = "",
        left: str = "",
        quiet: bool = False,
    ) -> None:
        self.title, self.total, self.completed = title, total, completed
        self.text, self.left, self.quiet = text, left, quiet
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._live: tuple[Progress, TaskID] | None = None

    @property
    def is_live(self) -> bool:
        """Whether there is a bar in a terminal."""
        return self._live is not None

    def start(self) -> None:
        """Draw the bar if stderr is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TextColumn("[red]{task.fields[failed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        task = bar.add_task(
            self.title, total=self.total, completed=self.completed, text=self.text, failed="", left=self.left
        )
        self._live = (bar, task)
        bar.start()

    def stop(self) -> None:
        """Leave the bar in the terminal as it is."""
        if self._live is not None:
            self._live[0].stop()
            self._live = None

    def show(
        self, line: Callable[[], str], *, total: int, completed: int, text: str, left: str, failed: str = ""
    ) -> bool:
        """Update the bar; without one, print `line()` if ten seconds have passed since the last line.

        Returns:
            Whether a line was printed.
        """
        if self._live is not None:
            bar, task = self._live
            bar.update(task, total=total, completed=completed, text=text, failed=failed, left=left)
            return False
        now = time.monotonic()
        if now < self._next_line:
            return False
        self.say(line())
        self._next_line = now + SECONDS_BETWEEN_LINES
        return True

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one. Secrets are masked."""
        if self._live is not None:
            self._live[0].console.print(masked(text), highlight=False, markup=False)
        elif not self.quiet:
            print(masked(text), file=sys.stderr, flush=True)
