"""Builds the report of the caption job: counts, a sample of images with their captions, and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captionlib.report.cards import Card
from captionlib.report.charts import Chart, bar_chart, line_chart
from captionlib.report.page import Page, Section, duration, share

ERROR_EXAMPLES = 4
"""Number of images shown per kind of error."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Figures of a caption run."""

    title: str = "Captions"
    text: str = ""
    """Subtitle, such as the inputs and the time."""
    num_planned: int
    num_captioned: int
    num_failed: int
    seconds: float
    """Wall-clock seconds of the run."""
    num_this_run: int | None = None
    """Number of images processed in `seconds`, if earlier runs processed others; None: all of them."""
    fingerprint: str = ""
    """Fingerprint of the model."""
    settings: Mapping[str, Any] | None = None
    """Search settings and everything else that determines the captions."""


def gallery_page(
    summary: RunSummary,
    cards: Sequence[Card],
    *,
    caption_lengths: Mapping[int, int] | None = None,
    repeated_captions: Sequence[tuple[str, int]] = (),
    throughput: Sequence[tuple[float, float]] = (),
    error_counts: Mapping[str, int] | None = None,
) -> Page:
    """The report of a caption run, for `render_page`. With 100 images it is about 3 MB.

    Args:
        summary: of the whole run.
        cards: a sample. Those with an `error` come last, grouped by kind, as examples.
        caption_lengths: of the whole run: words → captions.
        repeated_captions: the most frequent captions of the whole run, with their counts.
        throughput: (seconds since the start, images per second).
        error_counts: of the whole run: kind → images. Without it the cards are counted.
    """
    captioned = [card for card in cards if card.error is None]
    failed = [card for card in cards if card.error is not None]
    sections = []
    if captioned:
        sample = f"{len(captioned):,} of {summary.num_captioned:,} captioned images."
        sections.append(Section(title="Sample", text=sample, cards=captioned))
    charts = _charts(caption_lengths, throughput)
    if charts:
        sections.append(Section(title="The run", charts=charts))
    if repeated_captions:
        rows = [(caption, count, share(count, summary.num_captioned)) for caption, count in repeated_captions]
        sections.append(
            Section(
                title="Most repeated captions",
                text="A caption that fits many images says little about each.",
                table_head=("Caption", "Images", "Share"),
                table=rows,
            )
        )
    counts = error_counts if error_counts is not None else Counter(card.error_kind for card in failed)
    if counts:
        sections.append(_errors(counts, failed, summary.num_planned))
    return Page(
        title=summary.title,
        text=summary.text,
        numbers=_numbers(summary),
        alert=_alert(summary),
        sections=sections,
        settings=summary.settings,
    )


def _numbers(summary: RunSummary) -> list[tuple[str, str]]:
    numbers = [
        ("planned", f"{summary.num_planned:,}"),
        ("captioned", f"{summary.num_captioned:,}"),
        ("failed", f"{summary.num_failed:,}"),
        ("time", duration(summary.seconds)),
    ]
    if summary.seconds > 0:
        done = summary.num_captioned + summary.num_failed if summary.num_this_run is None else summary.num_this_run
        numbers.append(("images per second", f"{done / summary.seconds:,.1f}"))
    if summary.fingerprint:
        numbers.append(("model", summary.fingerprint))
    return numbers


def _alert(summary: RunSummary) -> str:
    done = summary.num_captioned + summary.num_failed
    if done == summary.num_planned:
        return ""
    return (
        f"{summary.num_captioned:,} captioned and {summary.num_failed:,} failed are {done:,}, "
        f"but {summary.num_planned:,} were planned: the run is not complete."
    )


def _charts(caption_lengths: Mapping[int, int] | None, throughput: Sequence[tuple[float, float]]) -> list[Chart]:
    charts = []
    if caption_lengths:
        charts.append(bar_chart("Captions by length", caption_lengths, x_label="words"))
    if throughput:
        minutes = throughput[-1][0] >= 600
        points = [(seconds / 60 if minutes else seconds, rate) for seconds, rate in throughput]
        charts.append(
            line_chart(
                "Images per second",
                {"images per second": points},
                x_label="minutes since the start" if minutes else "seconds since the start",
                from_zero=True,
            )
        )
    return charts


def _errors(counts: Mapping[str, int], failed: Sequence[Card], num_planned: int) -> Section:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    examples = [
        card for kind, _ in by_count for card in [card for card in failed if card.error_kind == kind][:ERROR_EXAMPLES]
    ]
    return Section(
        title="Not captioned",
        table_head=("Reason", "Images", "Share"),
        table=[(kind, count, share(count, num_planned)) for kind, count in by_count],
        cards=examples,
    )
