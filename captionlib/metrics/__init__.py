"""Metrics of captions: statistics per caption, merged by addition, then scored."""

from __future__ import annotations

from captionlib.metrics.cider_d import CiderD
from captionlib.metrics.diversity import Diversity, DiversityStats
from captionlib.metrics.java import JavaScores, score_with_java
from captionlib.metrics.scores import CaptionStats, ImageScores, Scores, score_captions

__all__ = [
    "CaptionStats",
    "CiderD",
    "Diversity",
    "DiversityStats",
    "ImageScores",
    "JavaScores",
    "Scores",
    "score_captions",
    "score_with_java",
]
