"""What has become of each chunk, by the receipts that come in, and when a run must stop."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.batch.decode_stage import Chunk
from jobs.batch.failures import Failures
from jobs.cli.errors import JobIncomplete
from jobs.cli.progress import Progress
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange, cut
from jobs.storage.errors import TransportFault

IMAGES_BEFORE_ERROR_SHARE = 1_000
SPLIT = 8
"""A chunk that was put off is cut into so many, so that one bad image holds back fewer others each time."""


@dataclass
class Round:
    """The end of one pass over the chunks that were left."""

    left: list[Chunk] = field(default_factory=list)
    """Chunks for another round."""
    suspected: list[Chunk] = field(default_factory=list)
    """Single images whose workers died, which may have been another one's fault. Each wants a round to itself."""
    poison: list[Chunk] = field(default_factory=list)
    """Single images that no worker survived, with nothing beside them."""
    made_progress: bool = False
    """Whether any chunk was committed."""
    unforeseen: bool = False
    """Whether unexpected exceptions are the only reason why chunks remain, so that waiting would not help."""
    repeated: bool = False
    """Whether each of these exceptions had come at its images before."""
    smallest: bool = False
    """Whether none of the chunks that failed can be cut into smaller ones."""


class ChunkTracker:
    """Follows the receipts of a run.

    Args:
        files: where committed chunks can be seen.
        max_error_share: of the images, after the first thousand.
        patience: chunks put off in a row after which a round is given up: the storage is away.
    """

    def __init__(self, files: ChunkFiles, progress: Progress, max_error_share: float, patience: int) -> None:
        self.files, self.progress = files, progress
        self.max_error_share, self.patience = max_error_share, patience
        self.last_reason = ""
        """Why chunks were put off."""
        self.seconds: dict[str, float] = {}
        """By step, summed over chunks (and threads, where a step has several)."""
        self.failures = Failures(files.folder.parent, progress.say)
        self._nodes: set[str] = set()

    def consume(self, chunks: Collection[Chunk], receipts: Iterator[Mapping[str, Any]]) -> Round:
        """Take the receipts of one round as they come.

        Raises:
            JobIncomplete: another round would not help.
        """
        result = Round()
        waiting = {chunk.ids: chunk for chunk in chunks}
        deferred: list[Chunk] = []
        in_a_row = 0
        failed: list[bool] = []  # whether it is no news, of each chunk that failed as nobody foresaw
        for receipt in receipts:
            chunk = waiting.pop(IdRange(receipt["first"], receipt["last"]), None)
            if chunk is None:
                continue  # Ray did it twice: the same rows, in the same file
            if receipt["status"] == "committed":
                self._commit(chunk, receipt)
                result.made_progress, in_a_row = True, 0
                continue
            self.last_reason = receipt["reason"]
            if receipt["status"] == "denied":
                raise JobIncomplete(receipt["reason"])
            deferred.append(chunk)
            if receipt.get("trace"):
                failed.append(self.failures.note(chunk.ids, receipt))
            in_a_row += 1
            if in_a_row >= self.patience:
                break
        else:
            if waiting:  # the round is over and these have no receipt
                self.last_reason = "the processes that worked on them died"
            accused = result.poison if len(chunks) == 1 else result.suspected
            for chunk in waiting.values():
                (accused if chunk.ids.size == 1 else deferred).append(chunk)
            waiting = {}
        result.unforeseen = bool(failed) and len(failed) == len(deferred) and not (result.suspected or result.poison)
        result.repeated = result.unforeseen and all(failed)
        result.smallest = all(chunk.redo_errors or chunk.ids.size == 1 for chunk in deferred)
        for chunk in deferred:
            # Rows are done again in the file that they are in, so such a chunk keeps its size.
            size = chunk.ids.size if chunk.redo_errors else -(-chunk.ids.size // SPLIT)
            result.left += [Chunk(ids, chunk.redo_errors) for ids in cut([chunk.ids], size)]
        result.left += waiting.values()
        return result

    def _commit(self, chunk: Chunk, receipt: Mapping[str, Any]) -> None:
        self._check_output_visible_from(receipt["node"], chunk)
        for step in ("read", "decode", "model", "write"):
            self.seconds[step] = self.seconds.get(step, 0.0) + receipt[f"{step}_seconds"]
        progress = self.progress
        progress.add(receipt["done"], receipt["failed"])
        if progress.images >= IMAGES_BEFORE_ERROR_SHARE and progress.failed > self.max_error_share * progress.images:
            raise JobIncomplete(
                f"{progress.failed:,} of {progress.images:,} images failed, more than --max-error-share "
                f"{self.max_error_share:g} allows: look at the column `error` in {self.files.folder.url}. If that is "
                "how the input is, run again with a larger share"
            )

    def _check_output_visible_from(self, node: str, chunk: Chunk) -> None:
        """This machine sees the first file that a node wrote."""
        if node in self._nodes:
            return
        try:
            is_there = self.files.exists(chunk.ids)
        except TransportFault:
            return  # the storage has gone away since: its next file will do
        self._nodes.add(node)
        if not is_there:
            raise JobIncomplete(
                f"the machine {socket.gethostname()} does not see what {node} wrote to {self.files.folder.url}: the "
                "output must be a folder that all machines share, or a URL such as s3://…"
            )
