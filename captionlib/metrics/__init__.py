"""Metrics of captions: statistics per caption, merged by addition, then scored."""

from __future__ import annotations

from captionlib.metrics.base import Label, Metric, MetricScores, MetricUnavailable
from captionlib.metrics.cider_d import CiderD
from captionlib.metrics.diversity import Diversity, DiversityStats
from captionlib.metrics.registry import HEADLINE, LABELS, MAIN_SCORE, METRICS, PYTHON_METRICS
from captionlib.metrics.scores import CaptionStats, Scores, score_captions

__all__ = [
    "HEADLINE",
    "LABELS",
    "MAIN_SCORE",
    "METRICS",
    "PYTHON_METRICS",
    "CaptionStats",
    "CiderD",
    "Diversity",
    "DiversityStats",
    "Label",
    "Metric",
    "MetricScores",
    "MetricUnavailable",
    "Scores",
    "score_captions",
]
