"""Writes the report of an evaluation: scores, and the images with the best and the worst captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captionlib.images.decode import decode_image
from captionlib.report import Card, Page, Section, thumbnail_jpeg
from captionlib.report.cards import THUMBNAIL_SIDE
from jobs.storage.read import read_bytes

NUM_EXTREMES = 10
"""Number of best and of worst images."""


def evaluation_page(
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[tuple[str, str]],
    signature: str,
    notes: Sequence[str],
) -> Page:
    """Build the page.

    Args:
        rows: paths, caption, references and scores of each image.
        numbers: name and value of each score of the whole set.
        signature: signature of the scores.
        notes: remarks on what was not computed.
    """
    ordered = sorted(rows, key=lambda row: row["cider_d"], reverse=True)
    # Of few images each is shown once.
    num_shown = min(NUM_EXTREMES, len(ordered) // 2)
    best, worst = ordered[:num_shown], ordered[len(ordered) - num_shown :]
    sections = [
        Section(title="Best", text="Highest CIDEr-D.", cards=[_card(row) for row in best]),
        Section(title="Worst", text="Lowest CIDEr-D, the lowest first.", cards=[_card(row) for row in worst[::-1]]),
    ]
    if notes:
        sections.append(Section(title="Notes", text=" ".join(f"{note}." for note in notes)))
    return Page(title="Evaluation", text=signature, numbers=numbers, sections=sections)


def _card(row: Mapping[str, Any]) -> Card:
    notes = [("CIDEr-D", f"{row['cider_d']:.2f}"), ("BLEU-4", f"{row['bleu_4']:.2f}")]
    notes += [("References", text) for text in row["references"]]
    return Card(path=row["path"], thumbnail_jpeg=_thumbnail(row), caption=row["caption"], notes=notes)


def _thumbnail(row: Mapping[str, Any]) -> bytes | None:
    """Return a thumbnail of the image from either path; None if neither can be read."""
    for path in (row["path"], row["reference_path"]):
        try:
            return thumbnail_jpeg(decode_image(read_bytes(path), target_side=THUMBNAIL_SIDE).image)
        except (OSError, ValueError):
            continue
    return None
