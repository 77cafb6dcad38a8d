"""Prints the final counts and sample captions of a run, and draws samples from its rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from captionlib.masking import masked
from jobs.batch.job import RunResult
from jobs.cli.progress import format_seconds
from jobs.inputs.listing import describe_left_out

if TYPE_CHECKING:
    pass


def print_summary(outcome: RunResult, verb: str) -> None:
    """Print the counts and the location of the results to stdout."""
    done, failed = outcome.counts
    planned = outcome.manifest.num_images
    assert done + failed == planned
    folder = masked(outcome.files.folder.url)
    if not planned and "shard" in outcome.identity:
        print(f"Nothing to do: no image of the inputs belongs to shard {outcome.identity['shard']}.")
        return
    if not outcome.run:
        print(f"Nothing to do: all {planned:,} images have a row.")
    print(f"{done:,} {verb} + {failed:,} failed = {planned:,} planned")
    if outcome.images:
        speed = f"{outcome.images:,} images in {format_seconds(outcome.seconds)}"
        if outcome.figures.images_per_second:
            speed += (
                f": {outcome.figures.images_per_second:.1f} images/s once warm, after "
                f"{format_seconds(outcome.figures.start_up_seconds)} of start-up"
            )
        print(speed)
    print(f'rows:   {folder}  (pandas.read_parquet("{folder}"))')
    if outcome.left_out:
        print(describe_left_out(outcome.left_out))
    if outcome.output.exists("report.html"):
        print(f"report: {masked(outcome.output.url)}/report.html")
    if failed and outcome.images:
        print("failed: their rows have an `error`; --retry-errors tries them again")


def print_captions(outcome: RunResult, count: int) -> None:
    """Print a table of captions that are spread evenly over all images, with their confidence if the model gives it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = _sample(outcome, count, failed=False)
    calibrated = any(row["confidence"] is not None for row in rows)
    column, decimals = ("confidence", 2) if calibrated else ("log_prob", 1)
    table = Table("image", "caption", "confidence" if calibrated else "log p")
    for row in rows:
        value = row[column]
        # As text, so that brackets in a name are not taken for markup.
        name, caption = Text(printable(short_name(row["path"]))), Text(row["caption"])
        table.add_row(name, caption, "" if value is None else f"{value:.{decimals}f}")
    Console().print(table)


def short_name(path: str) -> str:
    """Shorten a path for a table: the file name, or the name of the Parquet file and the row."""
    *_, folder, name = ["", *path.split("/")]
    return f"{folder}/{name}" if name.isdecimal() else name


def printable(text: str) -> str:
    """Escape line breaks and control characters of a path; letters of all languages are kept."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _batches(outcome: RunResult, columns: list[str]) -> Iterator[pa.Table]:
    for ids in outcome.files.finished():
        yield outcome.files.read(ids, columns)


def _sample(outcome: RunResult, count: int, *, failed: bool) -> list[dict[str, Any]]:
    """Draw rows with or without an error, spread evenly over the files of the output."""
    counted = outcome.files.count(outcome.files.finished())
    available = {ids: c.failed if failed else c.done for ids, c in counted.items()}
    wanted = min(count, sum(available.values()))
    found: list[dict[str, Any]] = []
    before = 0
    for ids, here in available.items():
        # Those of `wanted` evenly spaced places over all files that are in this file.
        first = -(-before * wanted // max(1, sum(available.values())))
        last = -(-(before + here) * wanted // max(1, sum(available.values())))
        before += here
        if last > first:
            rows = outcome.files.read(ids)
            mask = rows.column("error").is_valid() if failed else rows.column("error").is_null()
            rows = rows.filter(mask)
            step = max(1, rows.num_rows // (last - first))
            places = list(itertools.islice(range(0, rows.num_rows, step), last - first))
            found += rows.take(places).to_pylist()
    return found
