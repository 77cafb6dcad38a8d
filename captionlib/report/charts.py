"""Bar and line charts as inline SVG, which adopt the light or dark colours of the page.

Sizes are in SVG units; on a page a chart is 320 to 560 CSS pixels wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 40
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
MAX_POINTS = 240
"""A line with more points is averaged in groups, so that a curve of a million steps stays small."""
MAX_MARKS = 40
"""Up to this number of points are marked and show their value under the pointer."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A rendered chart with its title and, if it has several lines, their names."""

    title: str
    svg: Markup
    legend: Sequence[str] = ()


def bar_chart(title: str, counts: Mapping[int, int], *, x_label: str) -> Chart:
    """Draw a histogram over whole numbers. Missing numbers between the smallest and the largest count as 0."""
    if not counts:
        raise ValueError(f"chart {title!r} has no bars")
    first, last = min(counts), max(counts)
    y_ticks = ticks(0, max(counts.values()))
    step = PLOT_WIDTH / (last - first + 1)
    gap = min(3.0, 0.15 * step)
    parts = [_grid(y_ticks)]
    label_every = math.ceil(20 / step)
    for position, number in enumerate(range(first, last + 1)):
        count = counts.get(number, 0)
        height = PLOT_HEIGHT * count / y_ticks[-1]
        x, y = LEFT + position * step, TOP + PLOT_HEIGHT - height
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{:.1f}">'
                "<title>{} {}: {:,}</title></rect>"
            ).format(x + gap / 2, y, step - gap, height, min(2.0, height / 2), number, x_label, count)
        )
        if position % label_every == 0:
            parts.append(_text(x + step / 2, TOP + PLOT_HEIGHT + 16, str(number), "middle"))
    parts.append(_text(LEFT + PLOT_WIDTH / 2, HEIGHT - 6, x_label, "middle"))
    return Chart(title=title, svg=_svg(title, parts))


def named_bars(title: str, values: Mapping[str, float], *, unit: str) -> Chart:
    """Draw one horizontal bar per name, from top to bottom, each with its value; values are not negative.

    Args:
        title: text above the chart.
        values: at least one.
        unit: text below the chart.
    """
    if not values:
        raise ValueError(f"chart {title!r} has no bars")
    names = 8.0 * max(map(len, values))  # approximate width of a letter in pixels
    room = WIDTH - RIGHT - names - 60  # leaves room for the value after the bar
    step = PLOT_HEIGHT / len(values)
    thickness = min(26.0, 0.7 * step)
    largest = max(values.values()) or 1.0
    parts = []
    for position, (name, value) in enumerate(values.items()):
        middle = TOP + (position + 0.5) * step
        width = room * value / largest
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2">'
                "<title>{}: {:,.1f} {}</title></rect>"
            ).format(names + 8, middle - thickness / 2, width, thickness, name, value, unit)
        )
        parts.append(_text(names, middle + 4, name, "end"))
        parts.append(_text(names + 14 + width, middle + 4, compact(value), "start"))
    parts.append(_text(names + 8 + room / 2, HEIGHT - 6, unit, "middle"))
    return Chart(title=title, svg=_svg(title, parts))


def line_chart(title: str, lines: Mapping[str, Sequence[Point]], *, x_label: str, from_zero: bool = False) -> Chart:
    """Draw lines over a common axis, by name. Points that are not finite are omitted.

    Args:
        title: text above the chart.
        lines: (x, y) points in order of x.
        x_label: text below the axis.
        from_zero: both axes begin at 0, and the area under the first line is filled.
    """
    drawn = {name: _thin(_finite(points)) for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        raise ValueError(f"chart {title!r} has no finite points")
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points]
    x_low, x_high = 0 if from_zero else min(xs), max(xs)
    x_ticks, y_ticks = ticks(x_low, x_high, 6), ticks(0 if from_zero else min(ys), max(ys))
    if all(x == round(x) for x in xs):  # steps or epochs need whole numbers as ticks
        x_ticks = [tick for tick in x_ticks if tick == round(tick)]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        across = (point[0] - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (point[1] - y_low) / (y_high - y_low)
        return LEFT + PLOT_WIDTH * across, TOP + PLOT_HEIGHT * (1 - up)

    parts = [_grid(y_ticks)]
    for number, (name, points) in enumerate(drawn.items()):
        placed = [place(point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        if from_zero and number == 0:
            floor = TOP + PLOT_HEIGHT
            area = f"{placed[0][0]:.1f},{floor} {path} {placed[-1][0]:.1f},{floor}"
            parts.append(Markup('<polygon class="area" points="{}"/>').format(area))
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(number % 4, path))
        for (x, y), point in zip(placed, points, strict=True) if len(points) <= MAX_MARKS else ():
            parts.append(
                Markup(
                    '<circle class="mark s{}" cx="{:.1f}" cy="{:.1f}" r="2.6">'
                    "<title>{} at {} {}: {:.4g}</title></circle>"
                ).format(number % 4, x, y, name, x_label, plain(point[0]), point[1])
            )
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(_text(place((tick, y_low))[0], TOP + PLOT_HEIGHT + 16, compact(tick), "middle"))
    parts.append(_text(LEFT + PLOT_WIDTH / 2, HEIGHT - 6, x_label, "middle"))
    return Chart(title=title, svg=_svg(title, parts), legend=list(drawn) if len(drawn) > 1 else [])


def ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal except for rounding
        margin = abs(low) * 0.1 or 1.0
        low, high = (low, low + 1) if low == 0 else (low - margin, low + margin)
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def compact(value: float) -> str:
    """Format a number in few characters: 1.5M, 20k, 0.25, 4e-4."""
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for limit, divisor, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / divisor:.4g}{suffix}"
    return f"{value:,.4g}"


def plain(value: float) -> str:
    """Format a number of steps or epochs, without decimals if it is whole."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: list[Point]) -> list[Point]:
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _grid(y_ticks: Sequence[float]) -> Markup:
    parts = []
    for tick in y_ticks:
        y = TOP + PLOT_HEIGHT * (1 - (tick - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        )
        parts.append(_text(LEFT - 7, y + 4, compact(tick), "end"))
    return Markup("").join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
