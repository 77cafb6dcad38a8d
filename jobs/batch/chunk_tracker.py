"""Tracks the state of each chunk from the receipts of workers, and decides when to stop the run."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from captionlib.storage.errors import TransportFault
from jobs.batch.decode_stage import Chunk
from jobs.batch.failures import Failures
from jobs.cli.errors import JobIncomplete
from jobs.cli.progress import Progress
from jobs.outputs.chunk_files import ChunkFiles, FileCounts
from jobs.outputs.id_ranges import IdRange, cut

IMAGES_BEFORE_ERROR_SHARE = 1_000
CANARIES = 3
SPLIT = 8
"""Number of pieces that a deferred chunk is split into, so that one bad image delays fewer others in each round."""


@dataclass
class Round:
    """Result of one pass over the remaining chunks."""

    left: list[Chunk] = field(default_factory=list)
    """Chunks for another round."""
    suspected: list[Chunk] = field(default_factory=list)
    """Single images whose workers died, possibly because of another image. Each is tried again in a round of its
    own."""
    poison: list[Chunk] = field(default_factory=list)
    """Single images that killed their worker although no other image was in progress."""
    made_progress: bool = False
    """Whether any chunk was committed."""
    unforeseen: bool = False
    """Whether unexpected exceptions are the only reason why chunks remain, so that waiting would not help."""
    repeated: bool = False
    """Whether each of these exceptions had occurred before for the same images."""
    smallest: bool = False
    """Whether no failed chunk can be split further."""


class ChunkTracker:
    """Consumes the receipts of a run.

    Args:
        files: committed chunks.
        max_error_share: largest share of failed images, after the first thousand.
        patience: maximum number of consecutive deferred chunks; more are taken as a storage outage and end the round.
        rows: current number of rows in the output, including those of earlier runs.
        redo: files some of whose rows will be processed again.
        on_commit: called with the number of rows in the output after every committed chunk.
    """

    def __init__(
        self,
        files: ChunkFiles,
        progress: Progress,
        max_error_share: float,
        patience: int,
        rows: FileCounts = FileCounts(),  # noqa: B008  it is a tuple
        redo: Iterable[IdRange] = (),
        on_commit: Callable[[FileCounts], None] = lambda rows: None,
    ) -> None:
        self.files, self.progress = files, progress
        self.max_error_share, self.patience = max_error_share, patience
        self.rows, self.on_commit = rows, on_commit
        self._before = files.count(redo)
        self.last_reason = ""
        """Reason for the most recent deferral."""
        self.canaries: list[str] = []
        """URLs of fetched images, newest first. While one of their servers answers, the network is working."""
        self.seconds: dict[str, float] = {}
        """Seconds by step, summed over chunks and over the threads of a step."""
        self.failures = Failures(files.folder.parent, progress.say)
        self._nodes: set[str] = set()
        self._warnings: set[str] = set()

    def consume(self, chunks: Collection[Chunk], receipts: Iterator[Mapping[str, Any]]) -> Round:
        """Consume the receipts of one round as they arrive.

        Raises:
            JobIncomplete: another round would not help.
        """
        result = Round()
        waiting = {(chunk.ids, chunk.pause is not None): chunk for chunk in chunks}
        deferred: list[Chunk] = []
        partly_done: dict[IdRange, Chunk] = {}
        tried_twice: set[IdRange] = set()
        in_a_row = 0
        failed: list[bool] = []  # for each chunk with an unexpected exception, whether it is a repetition
        for receipt in receipts:
            is_second = receipt["pause"] is not None
            chunk = waiting.pop((IdRange(receipt["first"], receipt["last"]), is_second), None)
            if chunk is None:
                continue  # Ray processed the chunk twice and wrote the same rows to the same file
            self._say_warnings(receipt)
            if receipt["answered"]:
                self.note_answer(receipt["answered"])
            if receipt["status"] == "nothing":
                continue
            if is_second:
                partly_done.pop(chunk.ids, None)
                tried_twice.add(chunk.ids)
            if receipt["status"] == "committed":
                self._commit(chunk, receipt)
                result.made_progress, in_a_row = True, 0
                # The receipt of a second attempt may arrive before that of the first.
                if receipt["deferred"] and (is_second or chunk.ids not in tried_twice):
                    self.last_reason = receipt["reason"]
                    partly_done[chunk.ids] = Chunk(chunk.ids, "deferred")
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
            if waiting:  # these chunks have no receipt at the end of the round
                self.last_reason = "the processes that worked on them died"
            accused = result.poison if len(chunks) == 1 else result.suspected
            for chunk in _first_attempts(waiting.values()):
                (accused if chunk.ids.size == 1 else deferred).append(chunk)
            waiting = {}
        result.unforeseen = (
            bool(failed) and len(failed) == len(deferred) and not (result.suspected or result.poison or partly_done)
        )
        result.repeated = result.unforeseen and all(failed)
        result.smallest = all(bool(chunk.redo) or chunk.ids.size == 1 for chunk in deferred)
        for chunk in deferred:
            # Rows are replaced in their existing file, so such a chunk keeps its size.
            size = chunk.ids.size if chunk.redo else -(-chunk.ids.size // SPLIT)
            result.left += [Chunk(ids, chunk.redo) for ids in cut([chunk.ids], size)]
        # Shuffle the chunks that this round did not reach, because a list may begin with many images of one dead host.
        others = _first_attempts(waiting.values())
        random.Random(0).shuffle(others)
        result.left += [*others, *partly_done.values()]
        return result

    def note_answer(self, url: str) -> None:
        """Record that a web server of the inputs has answered."""
        others = [known for known in self.canaries if urlsplit(known).netloc != urlsplit(url).netloc]
        self.canaries = [url, *others][:CANARIES]

    def count(self, chunk: Chunk, counts: FileCounts) -> None:
        """Update the number of rows in the output after a chunk was written.

        Args:
            counts: rows that were written; in a chunk that is processed again, only a part of its file.
        """
        before = self._before.get(chunk.ids)
        if chunk.redo or before is not None:
            counts = self.files.count([chunk.ids])[chunk.ids]
        self.rows = self.rows.minus(before or FileCounts()).plus(counts)
        if chunk.redo or counts.deferred:
            self._before[chunk.ids] = counts
        self.on_commit(self.rows)

    def _say_warnings(self, receipt: Mapping[str, Any]) -> None:
        """Print each warning of the actors once."""
        for text in receipt.get("warnings") or ():
            if text not in self._warnings:
                self._warnings.add(text)
                self.progress.say(f"warning from {receipt['node']}: {text}")

    def _commit(self, chunk: Chunk, receipt: Mapping[str, Any]) -> None:
        self._check_output_visible_from(receipt["node"], chunk)
        for step in ("read", "decode", "model", "write"):
            self.seconds[step] = self.seconds.get(step, 0.0) + receipt[f"{step}_seconds"]
        progress = self.progress
        progress.add(receipt["done"], receipt["failed"])
        self.count(chunk, FileCounts(receipt["done"], receipt["failed"], receipt["deferred"]))
        if progress.images >= IMAGES_BEFORE_ERROR_SHARE and progress.failed > self.max_error_share * progress.images:
            raise JobIncomplete(
                f"{progress.failed:,} of {progress.images:,} images failed, more than --max-error-share "
                f"{self.max_error_share:g} allows: look at the column `error` in {self.files.folder.url}. If this is "
                "expected, run again with a larger share"
            )

    def _check_output_visible_from(self, node: str, chunk: Chunk) -> None:
        """Check that this machine sees the first file that a node wrote."""
        if node in self._nodes:
            return
        try:
            is_there = self.files.exists(chunk.ids)
        except TransportFault:
            return  # the storage has become unreachable; the next file is checked instead
        self._nodes.add(node)
        if not is_there:
            raise JobIncomplete(
                f"the machine {socket.gethostname()} does not see what {node} wrote to {self.files.folder.url}: the "
                "output must be a folder that all machines share, or a URL such as s3://…"
            )


def _first_attempts(chunks: Iterable[Chunk]) -> list[Chunk]:
    """Return the chunks without planned second attempts, which are void when the first attempt has no receipt."""
    return [chunk for chunk in chunks if chunk.pause is None]
