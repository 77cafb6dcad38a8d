"""The table of metrics, and which of their scores are shown where there is room for few."""

from __future__ import annotations

from captionlib.metrics import bleu, cider_d, java, rouge_l
from captionlib.metrics.base import Label, Metric

METRICS: tuple[Metric, ...] = (bleu.METRIC, rouge_l.METRIC, cider_d.METRIC, java.METEOR, java.SPICE)
"""All metrics, in the order of tables."""
PYTHON_METRICS = tuple(metric for metric in METRICS if not metric.needs_java)
"""Those that are fast and always available."""
LABELS: dict[str, Label] = {name: label for metric in METRICS for name, label in metric.labels.items()}
"""Name of each score, and its label."""
MAIN_SCORE = "cider_d"
"""Chooses the best epoch of a training run, and orders the images of a report."""
HEADLINE = (MAIN_SCORE, "bleu_4")
"""Scores that are shown where there is room for few."""
