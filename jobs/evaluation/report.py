"""Writes the report of an evaluation: scores, and the images with the best and the worst captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captionlib.images.decode import decode_image
from captionlib.metrics import HEADLINE, LABELS, MAIN_SCORE
from captionlib.report import Card, Page, Section, thumbnail_jpeg
from captionlib.report.cards import THUMBNAIL_SIDE
from captionlib.storage.read import read_bytes

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
    ordered = sorted(rows, key=lambda row: row[MAIN_SCORE], reverse=True)
    # With few images, none is shown in both lists.
    num_shown = min(NUM_EXTREMES, len(ordered) // 2)
    best, worst = ordered[:num_shown], ordered[len(ordered) - num_shown :]
    main = LABELS[MAIN_SCORE].title
    sections = [
        Section(title="Best", text=f"Highest {main}.", cards=[_card(row) for row in best]),
        Section(title="Worst", text=f"Lowest {main}, the lowest first.", cards=[_card(row) for row in worst[::-1]]),
    ]
    if notes:
        sections.append(Section(title="Notes", text=" ".join(f"{note}." for note in notes)))
    return Page(title="Evaluation", text=signature, numbers=numbers, sections=sections)


def _card(row: Mapping[str, Any]) -> Card:
    notes = [(LABELS[name].title, f"{row[name]:.2f}") for name in HEADLINE]
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
