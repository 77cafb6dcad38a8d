from __future__ import annotations

import io
import sys
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from captionlib import report

METRICS: list[dict[str, Any]] = [
    {"step": 10, "epoch": 1, "train_loss": 5.0, "dev_loss": None, "cider_d": None, "learning_rate": 1e-3},
    {"step": 20, "epoch": 1, "train_loss": 4.0, "dev_loss": 4.5, "cider_d": 0.25, "learning_rate": 1e-3},
    {"step": 30, "epoch": 2, "train_loss": float("nan"), "dev_loss": None, "learning_rate": 5e-4},
    {"step": 40, "epoch": 2, "train_loss": 3.0, "dev_loss": 4.75, "cider_d": 0.375, "learning_rate": 0.0},
]


def test_training_page_names_the_best() -> None:
    page = report.training_page(METRICS, seconds=90)
    assert page.numbers == [
        ("lowest dev loss, step 20", "4.500"),
        ("best CIDEr-D, step 40", "0.375"),
        ("epochs", "2"),
        ("steps", "40"),
        ("time", "1 min 30 s"),
    ]
    assert [chart.title for chart in page.sections[0].charts] == [
        "Loss per token",
        "CIDEr-D on dev",
        "Learning rate",
    ]


def test_an_arrow_table_is_as_good_as_rows() -> None:
    assert report.training_page(pa.Table.from_pylist(METRICS)) == report.training_page(METRICS)


def test_curves_are_a_png_with_a_panel_per_group() -> None:
    with Image.open(io.BytesIO(report.curves_png(METRICS, title="Run"))) as three:
        assert three.format == "PNG"
        three_panels = three.size
    with Image.open(io.BytesIO(report.curves_png([{"epoch": 1, "bleu_4": 0.2}]))) as one:
        assert one.width * 3 == pytest.approx(three_panels[0], abs=3)
        assert one.height == three_panels[1]


@pytest.mark.parametrize("draw", [report.curves_png, report.training_page])
def test_metrics_that_cannot_be_drawn(draw: Any) -> None:
    with pytest.raises(ValueError, match="the table has no rows"):
        draw([])
    with pytest.raises(ValueError, match="need a step or an epoch in every row"):
        draw([{"train_loss": 1.0}])
    with pytest.raises(ValueError, match=r"no metrics to draw; known: train_loss, dev_loss, cider_d"):
        draw([{"step": 1, "accuracy": 0.5}])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'captionlib\[train\]'"):
        report.curves_png(METRICS)
