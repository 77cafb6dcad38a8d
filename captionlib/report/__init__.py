"""Reports: caption gallery, training curves, attention maps."""

from __future__ import annotations

from captionlib.report.attention_map import attention_map
from captionlib.report.cards import Card, thumbnail_jpeg
from captionlib.report.charts import Chart, bar_chart, line_chart, named_bars
from captionlib.report.gallery import RunSummary, gallery_page
from captionlib.report.page import Page, Section, duration, render_page
from captionlib.report.training import curves_png, training_page

__all__ = [
    "Card",
    "Chart",
    "Page",
    "RunSummary",
    "Section",
    "attention_map",
    "bar_chart",
    "curves_png",
    "duration",
    "gallery_page",
    "line_chart",
    "named_bars",
    "render_page",
    "thumbnail_jpeg",
    "training_page",
]
