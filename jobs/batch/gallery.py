"""Writes `report.html`: statistics of a run and a gallery of sample images with their captions."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from captionlib.masking import masked
from captionlib.storage.errors import AccessDenied, InputFault, TransportFault
from jobs.batch.job import RunResult
from jobs.batch.row_images import RowImages
from jobs.batch.settings import CaptionSettings
from jobs.inputs.listing import describe_left_out

if TYPE_CHECKING:
    from captionlib.report import Card
from jobs.batch.summary import _batches, _sample

CARDS = 48
"""Number of images in the report, and at most as many errors."""
MOST_REPEATED = 10


def write_report(outcome: RunResult, settings: CaptionSettings) -> None:
    """Write `report.html`. If that fails, a warning is printed: the captions are complete without it."""
    from captionlib.config import to_dict
    from captionlib.report import RunSummary, gallery_page, render_page

    lengths: Counter[int] = Counter()
    captions: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for rows in _batches(outcome, ["caption", "num_tokens", "error"]):
        lengths.update(rows.column("num_tokens").drop_null().to_pylist())
        captions.update(rows.column("caption").drop_null().to_pylist())
        errors.update(error.partition(":")[0] for error in rows.column("error").drop_null().to_pylist())
        if len(captions) > 1_000_000:  # keeps the count of frequent captions in bounded memory
            captions = Counter(dict(captions.most_common(100_000)))
    with RowImages(outcome.manifest, settings.source.image_column) as images:
        cards = [_card(row, _image_of(row, images)) for row in _sample(outcome, CARDS, failed=False)]
    cards += [_card(row, None) for row in _sample(outcome, CARDS, failed=True)]
    done, failed = outcome.counts
    summary = RunSummary(
        title="Captions",
        text=". ".join(filter(None, [masked(" ".join(settings.inputs)), describe_left_out(outcome.left_out)])),
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
        throughput=outcome.figures.rates,
        error_counts=errors,
    )
    try:
        outcome.output.write("report.html", render_page(page))
    except OSError as error:
        print(f"report.html could not be written: {error}", file=sys.stderr)


def _image_of(row: Mapping[str, Any], images: RowImages) -> bytes | None:
    """Read the bytes of the image of a row; None if it can no longer be read."""
    try:
        return images.read(row)
    except (InputFault, TransportFault, AccessDenied):
        return None


def _card(row: dict[str, Any], data: bytes | None) -> Card:
    from captionlib.images.decode import ImageDecodeError, decode_image
    from captionlib.report import Card, thumbnail_jpeg
    from captionlib.report.cards import THUMBNAIL_SIDE

    thumbnail = None
    if data is not None:
        try:
            thumbnail = thumbnail_jpeg(decode_image(data, target_side=THUMBNAIL_SIDE).image)
        except ImageDecodeError:
            thumbnail = None  # the file has changed since it was captioned; the caption is shown without a thumbnail
    others = [(other["text"], other["log_prob"]) for other in (row["captions"] or [])[1:]]
    return Card(
        path=row["path"],
        thumbnail_jpeg=thumbnail,
        caption=row["caption"],
        log_prob=row["log_prob"],
        num_tokens=row["num_tokens"],
        confidence=row["confidence"],
        is_doubtful=bool(row["low_confidence"]),
        alternatives=others,
        error=row["error"],
    )
