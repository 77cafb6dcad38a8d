"""Builds the report of the training job: curves of its metrics, as a page and as a PNG image."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captionlib.errors import UserError
from captionlib.metrics import HEADLINE, LABELS
from captionlib.report.charts import MAX_MARKS, Chart, Point, line_chart, plain
from captionlib.report.page import Page, Section, duration

if TYPE_CHECKING:
    import pyarrow as pa

MetricRow = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A diagram of metrics that share a vertical axis: column → name in the legend."""

    title: str
    columns: Mapping[str, str]
    higher_is_better: bool | None = None
    """None for settings, which are neither better nor worse."""


PANELS = (
    Panel("Loss per token", {"train_loss": "train", "dev_loss": "dev"}, higher_is_better=False),
    *(Panel(f"{LABELS[name].title} on dev", {name: LABELS[name].title}, higher_is_better=True) for name in HEADLINE),
    Panel("Reward of self-critical training", {"reward": "sampled", "baseline_reward": "greedy"}),
    Panel("Learning rate", {"learning_rate": "learning rate"}),
    Panel("Teacher forcing", {"teacher_forcing": "probability of the reference word"}),
)
"""The diagrams, drawn if the metrics contain their columns."""

_COLOURS = ("#2f6f62", "#c2703d")
_INK, _MUTED, _RULE = "#1d2021", "#696e72", "#e3e3df"


def curves_png(metrics: Sequence[MetricRow] | pa.Table, *, title: str = "") -> bytes:
    """Draw the curves of a training run as a PNG image with matplotlib.

    Args:
        metrics: rows in order of time with `step` or `epoch`, and any columns of `PANELS`; a value that is missing,
            None or not finite is a gap (dev scores exist once per epoch).
        title: text above the diagrams.

    Raises:
        UserError: there is nothing to draw, or matplotlib is missing.
    """
    rows = _rows(metrics)
    axis = _time_axis(rows)
    panels = [(panel, lines) for panel in PANELS if (lines := _lines(panel, rows, axis))]
    if not panels:
        raise UserError(f"no metrics to draw; known: {', '.join(_known_columns())}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise UserError("training curves need matplotlib: pip install 'captionlib[train]'") from None

    # The figure is created without pyplot, because this also runs in a thread of a worker.
    num_columns = min(3, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.14)
    figure = Figure(figsize=(4.4 * num_columns, 3.1 * num_rows + 0.3), dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.012, ha="left", color=_INK)
    for number, (panel, lines) in enumerate(panels):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
            marker = "o" if len(points) <= MAX_MARKS else None
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=colour, linewidth=1.7, marker=marker, markersize=3.2, label=name)
            if (best := _best(panel, points)) and name == list(lines)[-1]:
                _mark_best(axes, best, colour)
        axes.set_title(panel.title, fontsize=10.5, loc="left", color=_INK, pad=9)
        axes.set_xlabel(axis, fontsize=9, color=_MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(y=0.14)
        axes.grid(axis="y", color=_RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5, colors=_MUTED, length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_RULE)
        if len(lines) > 1:
            axes.legend(fontsize=8.5, frameon=False, labelcolor=_MUTED)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def training_page(
    metrics: Sequence[MetricRow] | pa.Table,
    *,
    title: str = "Training",
    text: str = "",
    seconds: float | None = None,
    settings: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
) -> Page:
    """The report of a training run, for `render_page`. Needs no matplotlib.

    Args:
        metrics: as for `curves_png`.
        title: of the page.
        text: below the title.
        seconds: wall-clock time of the run.
        settings: of the run; groups may be nested.
        sections: further ones after the curves, such as cards of dev images with the captions so far.

    Raises:
        UserError: nothing to draw.
    """
    rows = _rows(metrics)
    axis = _time_axis(rows)
    charts: list[Chart] = []
    numbers: list[tuple[str, str]] = []
    for panel in PANELS:
        lines = _lines(panel, rows, axis)
        if not lines:
            continue
        charts.append(line_chart(panel.title, lines, x_label=axis))
        best = _best(panel, list(lines.values())[-1])
        if best is not None:
            word = "best" if panel.higher_is_better else "lowest"
            numbers.append((f"{word} {_label(panel, lines)}, {axis} {plain(best[0])}", f"{best[1]:.3f}"))
    if not charts:
        raise UserError(f"no metrics to draw; known: {', '.join(_known_columns())}")
    if rows[-1].get("epoch") is not None:
        numbers.append(("epochs", f"{rows[-1]['epoch']:g}"))
    if rows[-1].get("step") is not None:
        numbers.append(("steps", f"{rows[-1]['step']:,}"))
    if seconds is not None:
        numbers.append(("time", duration(seconds)))
    return Page(
        title=title,
        text=text,
        numbers=numbers,
        sections=[Section(title="Curves", charts=charts), *sections],
        settings=settings,
    )


def _rows(metrics: Sequence[MetricRow] | pa.Table) -> list[MetricRow]:
    rows: list[MetricRow] = list(metrics.to_pylist() if hasattr(metrics, "to_pylist") else metrics)
    if not rows:
        raise UserError("no metrics to draw: the table has no rows")
    return rows


def _time_axis(rows: Sequence[MetricRow]) -> str:
    for axis in ("step", "epoch"):
        if all(row.get(axis) is not None for row in rows):
            return axis
    raise UserError("metrics need a step or an epoch in every row")


def _lines(panel: Panel, rows: Sequence[MetricRow], axis: str) -> dict[str, list[Point]]:
    lines = {}
    for column, name in panel.columns.items():
        points = [
            (float(row[axis]), float(row[column]))
            for row in rows
            if row.get(column) is not None and math.isfinite(row[column])
        ]
        if points:
            lines[name] = points
    return lines


def _best(panel: Panel, points: Sequence[Point]) -> Point | None:
    if panel.higher_is_better is None:
        return None
    choose = max if panel.higher_is_better else min
    return choose(points, key=lambda point: point[1])


def _label(panel: Panel, lines: Mapping[str, Sequence[Point]]) -> str:
    name = list(lines)[-1]
    return f"{name} loss" if panel.higher_is_better is False else name


def _mark_best(axes: Any, best: Point, colour: str) -> None:
    axes.annotate(
        f"{best[1]:.3f}",
        best,
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
        fontweight="bold",
        color=colour,
    )


def _known_columns() -> list[str]:
    return [column for panel in PANELS for column in panel.columns]
