"""Reports unexpected exceptions of a batch job at once, stores their tracebacks, and recognises repeated ones.

Faults of a storage or a network do not belong here: they pass, so the job retries them with exponential back-off.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captionlib.masking import masked
from captionlib.storage.folder import Folder
from jobs.cli.tracebacks import FOLDER, last_line, without_numbers
from jobs.outputs.id_ranges import IdRange


def unforeseen(error: BaseException, step: str) -> dict[str, str]:
    """Return the fields of a receipt for the unexpected exception that is being handled.

    Args:
        step: activity of the process, such as "decoding".
    """
    return {
        "status": "deferred",
        "reason": masked(last_line(error)),
        "step": step,
        "trace": masked("".join(traceback.format_exception(error))),
    }


def log_failure(log: logging.Logger, error: BaseException, chunk: Mapping[str, Any]) -> None:
    """Log the traceback of a failed chunk, without secrets."""
    trace = masked("".join(traceback.format_exception(error)))
    log.error("images %s to %s\n%s", chunk["first"], chunk["last"], trace)


@dataclass
class Failure:
    """An error and all chunks in which it occurred."""

    error: str
    """Last line of the exception."""
    step: str
    first: IdRange
    """Images of the first occurrence."""
    place: str
    """Where the traceback is stored, as the end of a sentence."""
    count: int = 0
    images: list[IdRange] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the reason for stopping and what to do."""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return (
            f"{self.step} fails at {named(self.images[-1])}, also when it is tried again: {self.error}{times}. "
            f"{self.place[:1].upper()}{self.place[1:]}: remove the cause"
        )


class Failures:
    """Records the unexpected exceptions of a run.

    Args:
        output: output of the job; tracebacks are stored in a subfolder.
        say: prints a line for the user.
    """

    def __init__(self, output: Folder, say: Callable[[str], None]) -> None:
        self.folder, self.say = output / FOLDER, say
        self.last: Failure | None = None
        self._failures: dict[tuple[str, str], Failure] = {}
        self._seen: set[IdRange] = set()

    def note(self, ids: IdRange, receipt: Mapping[str, Any]) -> bool:
        """Record a receipt with a traceback. The first receipt of each error is reported at once.

        Returns:
            Whether it is a repetition: the same error for these images, or any error for exactly these images.
        """
        key = (receipt["step"], without_numbers(receipt["reason"]))
        failure = self._failures.get(key)
        if failure is None:
            failure = Failure(receipt["reason"], receipt["step"], ids, self._keep(ids, receipt))
            self._failures[key] = failure
            self.say(
                f"{failure.step} failed at {named(ids)} on {receipt['node'] or 'an unknown machine'}: "
                f"{failure.error}. They are tried again once, in smaller chunks; {failure.place}"
            )
        is_repeated = ids in self._seen or any(
            before.first <= ids.first and ids.last <= before.last for before in failure.images
        )
        self._seen.add(ids)
        failure.count += 1
        failure.images.append(ids)
        self.last = failure
        return is_repeated

    def _keep(self, ids: IdRange, receipt: Mapping[str, Any]) -> str:
        """Store the traceback, and describe where."""
        step = re.sub(r"\W+", "-", receipt["step"])
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{len(self._failures) + 1}-{step}.txt"
        head = f"{receipt['step']} failed at {named(ids)} on {receipt['node']}\n\n"
        try:
            self.folder.write(name, (head + receipt["trace"]).encode(errors="replace"))
        except OSError as error:  # the failure itself is reported in any case
            return f"its traceback could not be written to {self.folder.url} ({error})"
        return f"its traceback is in {self.folder.url}/{name}"


def named(ids: IdRange) -> str:
    """Name the images of a range in a sentence."""
    return f"image {ids.first}" if ids.size == 1 else f"images {ids.first} to {ids.last}"
