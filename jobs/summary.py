"""A run's last words: the counts in the terminal, some captions in a table, and the report as a page."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.fetch import Denied, InputFault, TransportFault
from jobs.listing import Listed
from jobs.part_job import Outcome
from jobs.progress import format_seconds
from jobs.ranges import IdRange
from jobs.reader import ImageReader, listed
from jobs.settings import CaptionSettings

if TYPE_CHECKING:
    from captionlib.report import Card

CARDS = 48
"""Images in the report, and as many again for errors."""
MOST_REPEATED = 10


def print_summary(outcome: Outcome, verb: str) -> None:
    """The counts and where everything is, on stdout."""
    done, failed = outcome.counts
    planned = outcome.manifest.num_images
    assert done + failed == planned
    folder = outcome.files.folder.url
    if not outcome.run:
        print(f"Nothing to do: all {planned:,} images have a row.")
    print(f"{done:,} {verb} + {failed:,} failed = {planned:,} planned")
    if outcome.images:
        speed = f"{outcome.images:,} images in {format_seconds(outcome.seconds)}"
        if outcome.images_per_second:
            speed += (
                f": {outcome.images_per_second:.1f} images/s once warm, after "
                f"{format_seconds(outcome.start_up_seconds)} of start-up"
            )
        print(speed)
    print(f'rows:   {folder}  (pandas.read_parquet("{folder}"))')
    if outcome.output.exists("report.html"):
        print(f"report: {outcome.output.url}/report.html")
    if failed and outcome.images:
        print("failed: their rows have an `error`; --retry-errors tries them again")


def print_captions(outcome: Outcome, count: int) -> None:
    """A table of captions, spread over the whole set."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "caption", "log p")
    for row in _sample(outcome, count, failed=False):
        # As text, so that brackets in a name are not taken for markup.
        table.add_row(Text(printable(short_name(row["path"]))), Text(row["caption"]), f"{row['log_prob']:.1f}")
    Console().print(table)


def short_name(path: str) -> str:
    """A path as a table has room for it: the file's name; in a Parquet file, that file's name and the row."""
    *_, folder, name = ["", *path.split("/")]
    return f"{folder}/{name}" if name.isdecimal() else name


def printable(text: str) -> str:
    """A path on one line: line breaks and control characters are escaped, letters of all languages stay."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_report(outcome: Outcome, settings: CaptionSettings) -> None:
    """`report.html`. A fault here is said and passed over: the captions are what counts."""
    from captionlib.config import to_dict
    from captionlib.report import RunSummary, gallery_page, write_page

    lengths: Counter[int] = Counter()
    captions: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for rows in _batches(outcome, ["caption", "num_tokens", "error"]):
        lengths.update(rows.column("num_tokens").drop_null().to_pylist())
        captions.update(rows.column("caption").drop_null().to_pylist())
        errors.update(error.partition(":")[0] for error in rows.column("error").drop_null().to_pylist())
        if len(captions) > 1_000_000:  # an honest count of the frequent ones, in bounded memory
            captions = Counter(dict(captions.most_common(100_000)))
    with ImageReader(settings.source.image_column) as reader:
        cards = [_card(row, _image_of(row, outcome, reader)) for row in _sample(outcome, CARDS, failed=False)]
    cards += [_card(row, None) for row in _sample(outcome, CARDS, failed=True)]
    done, failed = outcome.counts
    summary = RunSummary(
        title="Captions",
        text=" ".join(settings.inputs),
        num_planned=outcome.manifest.num_images,
        num_captioned=done,
        num_failed=failed,
        seconds=outcome.seconds,
        num_this_run=outcome.images,
        fingerprint=outcome.identity["model"],
        settings={"search": to_dict(settings.search)},
    )
    page = gallery_page(
        summary,
        cards,
        caption_lengths=lengths,
        repeated_captions=[item for item in captions.most_common(MOST_REPEATED) if item[1] > 1],
        throughput=outcome.rates,
        error_counts=errors,
    )
    try:
        write_page(f"{outcome.output.url}/report.html", page)
    except OSError as error:
        print(f"report.html could not be written: {error}", file=sys.stderr)


def _batches(outcome: Outcome, columns: list[str]) -> Iterator[pa.Table]:
    for ids in outcome.files.finished():
        yield outcome.files.read(ids, columns)


def _sample(outcome: Outcome, count: int, *, failed: bool) -> list[dict[str, Any]]:
    """Rows with (or without) an error, spread evenly over the output's files."""
    counted = outcome.files.count(outcome.files.finished())
    available = {ids: c.failed if failed else c.done for ids, c in counted.items()}
    wanted = min(count, sum(available.values()))
    found: list[dict[str, Any]] = []
    before = 0
    for ids, here in available.items():
        # Of `wanted` evenly spaced places in the whole, those that fall into this file.
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


def _image_of(row: Mapping[str, Any], outcome: Outcome, reader: ImageReader) -> bytes | None:
    """The bytes of a row's image; None where they cannot be had any more."""
    try:
        try:
            return reader.read(Listed(row["path"]))
        except InputFault:  # no file of its own: the manifest knows in which one it is
            (image,) = listed(outcome.manifest.read(IdRange(row["image_id"], row["image_id"])))
            return reader.read(image)
    except (InputFault, TransportFault, Denied):
        return None


def _card(row: dict[str, Any], data: bytes | None) -> Card:
    from captionlib.images import ImageDecodeError, decode_image
    from captionlib.report import Card, thumbnail_jpeg
    from captionlib.report.cards import THUMBNAIL_SIDE

    thumbnail = None
    if data is not None:
        try:
            thumbnail = thumbnail_jpeg(decode_image(data, target_side=THUMBNAIL_SIDE).image)
        except ImageDecodeError:
            thumbnail = None  # it was there when it was captioned; the page shows its caption without it
    others = [(other["text"], other["log_prob"]) for other in (row["captions"] or [])[1:]]
    return Card(
        path=row["path"],
        thumbnail_jpeg=thumbnail,
        caption=row["caption"],
        log_prob=row["log_prob"],
        num_tokens=row["num_tokens"],
        alternatives=others,
        error=row["error"],
    )
