"""What has become of each part, by the receipts that come in, and when a run must stop."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.failures import Failures
from jobs.fetch import TransportFault
from jobs.outputs import PartFiles
from jobs.progress import Progress
from jobs.ranges import IdRange, cut
from jobs.stages import Part

IMAGES_BEFORE_ERROR_SHARE = 1_000
SPLIT = 8
"""A part that was put off is cut into so many, so that one bad image holds back fewer others each time."""


class Stopped(Exception):
    """The job cannot go on, or is not complete; the message says why, and what to do."""


@dataclass
class Round:
    """The end of one pass over the parts that were left."""

    left: list[Part] = field(default_factory=list)
    """Parts for another round."""
    suspects: list[Part] = field(default_factory=list)
    """Single images whose workers died, which may have been another one's fault. Each wants a round to itself."""
    deadly: list[Part] = field(default_factory=list)
    """Single images that no worker survived, with nothing beside them."""
    made_progress: bool = False
    """Whether any part was committed."""
    unforeseen: bool = False
    """Whether exceptions that nobody foresaw are the only reason why parts are left, so that waiting would not help."""
    repeated: bool = False
    """Whether each of these exceptions had come at its images before."""
    smallest: bool = False
    """Whether none of the parts that failed can be cut into smaller ones."""


class Ledger:
    """Follows the receipts of a run.

    Args:
        files: where committed parts can be seen.
        max_error_share: of the images, after the first thousand.
        patience: parts put off in a row after which a round is given up: the storage is away.
    """

    def __init__(self, files: PartFiles, progress: Progress, max_error_share: float, patience: int) -> None:
        self.files, self.progress = files, progress
        self.max_error_share, self.patience = max_error_share, patience
        self.last_reason = ""
        """Why parts were put off."""
        self.seconds: dict[str, float] = {}
        """By step, summed over parts (and threads, where a step has several)."""
        self.failures = Failures(files.folder.parent, progress.say)
        self._nodes: set[str] = set()

    def follow(self, parts: Collection[Part], receipts: Iterator[Mapping[str, Any]]) -> Round:
        """Take the receipts of one round as they come.

        Raises:
            Stopped: another round would not help.
        """
        result = Round()
        waiting = {part.ids: part for part in parts}
        put_off: list[Part] = []
        in_a_row = 0
        failed: list[bool] = []  # whether it is no news, of each part that failed as nobody foresaw
        for receipt in receipts:
            part = waiting.pop(IdRange(receipt["first"], receipt["last"]), None)
            if part is None:
                continue  # Ray did it twice: the same rows, in the same file
            if receipt["status"] == "committed":
                self._commit(part, receipt)
                result.made_progress, in_a_row = True, 0
                continue
            self.last_reason = receipt["reason"]
            if receipt["status"] == "denied":
                raise Stopped(receipt["reason"])
            put_off.append(part)
            if receipt.get("trace"):
                failed.append(self.failures.note(part.ids, receipt))
            in_a_row += 1
            if in_a_row >= self.patience:
                break
        else:
            if waiting:  # the round is over and these have no receipt
                self.last_reason = "the processes that worked on them died"
            accused = result.deadly if len(parts) == 1 else result.suspects
            for part in waiting.values():
                (accused if part.ids.size == 1 else put_off).append(part)
            waiting = {}
        result.unforeseen = bool(failed) and len(failed) == len(put_off) and not (result.suspects or result.deadly)
        result.repeated = result.unforeseen and all(failed)
        result.smallest = all(part.redo_errors or part.ids.size == 1 for part in put_off)
        for part in put_off:
            # Rows are done again in the file that they are in, so such a part keeps its size.
            size = part.ids.size if part.redo_errors else -(-part.ids.size // SPLIT)
            result.left += [Part(ids, part.redo_errors) for ids in cut([part.ids], size)]
        result.left += waiting.values()
        return result

    def _commit(self, part: Part, receipt: Mapping[str, Any]) -> None:
        self._check_sight_of(receipt["node"], part)
        for step in ("read", "decode", "model", "write"):
            self.seconds[step] = self.seconds.get(step, 0.0) + receipt[f"{step}_seconds"]
        progress = self.progress
        progress.add(receipt["done"], receipt["failed"])
        if progress.images >= IMAGES_BEFORE_ERROR_SHARE and progress.failed > self.max_error_share * progress.images:
            raise Stopped(
                f"{progress.failed:,} of {progress.images:,} images failed, more than --max-error-share "
                f"{self.max_error_share:g} allows: look at the column `error` in {self.files.folder.url}. If that is "
                "how the input is, run again with a larger share"
            )

    def _check_sight_of(self, node: str, part: Part) -> None:
        """This machine sees the first file that a node wrote."""
        if node in self._nodes:
            return
        try:
            is_there = self.files.exists(part.ids)
        except TransportFault:
            return  # the storage has gone away since: its next file will do
        self._nodes.add(node)
        if not is_there:
            raise Stopped(
                f"the machine {socket.gethostname()} does not see what {node} wrote to {self.files.folder.url}: the "
                "output must be a folder that all machines share, or a URL such as s3://…"
            )
