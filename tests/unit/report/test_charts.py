from __future__ import annotations

import re

import pytest

from captionlib import report
from captionlib.report.charts import HEIGHT, LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, compact, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 226_000, [0, 50_000, 100_000, 150_000, 200_000, 250_000]),
        (2.71, 6.1, [2, 3, 4, 5, 6, 7]),
        (-0.2, 0.25, [-0.2, -0.1, 0, 0.1, 0.2, 0.3]),
        (3, 3, [2.6, 2.8, 3, 3.2, 3.4]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 2.2e-15, [0, 5e-16, 1e-15, 1.5e-15, 2e-15, 2.5e-15]),  # a BLEU-4 of next to nothing
        (3, 3 + 1e-12, [2.6, 2.8, 3, 3.2, 3.4]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_compact() -> None:
    values = [0, 0.0004, 0.25, 2000, 20_000, 1_500_000, 3e9, -12_000]
    texts = ["0", "4e-4", "0.25", "2,000", "20k", "1.5M", "3G", "-12k"]
    assert [compact(value) for value in values] == texts


def test_bars_are_as_high_as_their_counts() -> None:
    chart = report.bar_chart("Lengths", {4: 10, 6: 5}, x_label="words")
    heights = [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', chart.svg)]
    assert heights == pytest.approx([PLOT_HEIGHT, 0, PLOT_HEIGHT / 2])
    assert re.findall(r"<title>(.*?)</title>", chart.svg) == ["4 words: 10", "5 words: 0", "6 words: 5"]


def test_named_bars_are_as_wide_as_their_values() -> None:
    chart = report.named_bars("Rates", {"fetch": 200.0, "search <b>": 50.0}, unit="images/s")
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', chart.svg)]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.2)
    assert re.findall(r"<title>(.*?)</title>", chart.svg) == [
        "fetch: 200.0 images/s",
        "search &lt;b&gt;: 50.0 images/s",
    ]
    with pytest.raises(ValueError, match="no bars"):
        report.named_bars("Rates", {}, unit="images/s")


def test_lines_go_through_their_points() -> None:
    chart = report.line_chart("Loss", {"train": [(0, 10.0), (5, 0.0), (10, 5.0)], "dev": [(10, 10.0)]}, x_label="step")
    train, dev = re.findall(r'<polyline[^>]* points="(.*?)"', chart.svg)
    bottom, right = TOP + PLOT_HEIGHT, LEFT + PLOT_WIDTH
    expected = [(LEFT, TOP), (LEFT + PLOT_WIDTH / 2, bottom), (right, TOP + PLOT_HEIGHT / 2)]
    assert train == " ".join(f"{x:.1f},{y:.1f}" for x, y in expected)
    assert dev == f"{right:.1f},{TOP:.1f}"
    assert chart.legend == ["train", "dev"]


def test_a_long_line_is_thinned_and_gaps_are_left_out() -> None:
    points = [(float(step), 1.0 if step % 2 else 3.0) for step in range(10_000)] + [(10_000.0, float("nan"))]
    chart = report.line_chart("Loss", {"train": points}, x_label="step")
    [line] = re.findall(r'<polyline[^>]* points="(.*?)"', chart.svg)
    assert len(line.split()) == 239  # 10,000 in groups of 42
    assert "nan" not in chart.svg
    assert len({point.split(",")[1] for point in line.split()}) == 1  # every group's mean is 2


def test_charts_with_one_point_or_none() -> None:
    assert f"{HEIGHT}" in report.line_chart("Loss", {"dev": [(1, 2.0)]}, x_label="epoch").svg
    with pytest.raises(ValueError, match="'Loss' has no finite points"):
        report.line_chart("Loss", {"dev": [(1, float("inf"))]}, x_label="epoch")
    with pytest.raises(ValueError, match="'Lengths' has no bars"):
        report.bar_chart("Lengths", {}, x_label="words")


def test_whole_numbers_on_the_axis_of_epochs() -> None:
    chart = report.line_chart("Loss", {"dev": [(1, 4.0), (2, 3.5), (3, 3.25)]}, x_label="epoch")
    labels = re.findall(r'text-anchor="middle">(.*?)<', chart.svg)
    assert labels == ["1", "2", "3", "epoch"]
    assert "<title>dev at epoch 3: 3.25</title>" in chart.svg


def test_values_far_below_one_have_ticks_of_their_own() -> None:
    found = ticks(3e-14, 3e-14)
    assert len(found) == len(set(found)) > 1
    assert found[0] <= 3e-14 <= found[-1]
    assert "polyline" in line_chart("t", {"a": [(1, 3e-14)]}, x_label="epoch").svg
