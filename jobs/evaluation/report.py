"""The page of an evaluation: scores, and the captions that scored best and worst beside their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captionlib.images.decode import decode_image
from captionlib.report import Card, Page, Section, thumbnail_jpeg, write_page
from captionlib.report.cards import THUMBNAIL_SIDE
from jobs.storage.read import read_bytes

NUM_EXTREMES = 10
"""Images shown at either end."""


def write_evaluation(folder: str, page: Page) -> None:
    """Writes report.html into a folder, local or behind an fsspec URL."""
    write_page(f"{folder}/report.html", page)


def evaluation_page(
    rows: Sequence[Mapping[str, Any]],
    numbers: Sequence[tuple[str, str]],
    signature: str,
    notes: Sequence[str],
) -> Page:
    """The page.

    Args:
        rows: an image's paths, caption, references and scores each.
        numbers: name and value of the scores of all.
        signature: of the scores.
        notes: what was left out.
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
    """The picture from where the captions or the references say it is; None where it is in neither place."""
    for path in (row["path"], row["reference_path"]):
        try:
            return thumbnail_jpeg(decode_image(read_bytes(path), target_side=THUMBNAIL_SIDE).image)
        except (OSError, ValueError):
            continue
    return None
