"""The contract of a metric. To add one, write a file with a `Metric` and add a row to the table in `registry.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from captionlib.errors import CaptionlibError
from captionlib.metrics.ngrams import Tokens


class MetricUnavailable(CaptionlibError):
    """A metric cannot be computed here. The message is the reason, with the remedy."""


@dataclass(frozen=True)
class Label:
    """How people see a score."""

    title: str
    """Name, such as `BLEU-4`."""
    in_percent: bool = True
    """Whether papers state it as a percentage."""

    def short(self, value: float) -> str:
        """Return the value as papers state it, such as `23.9` or `0.612`."""
        return f"{100 * value:.1f}" if self.in_percent else f"{value:.3f}"


class MetricScores(NamedTuple):
    """The scores of one metric, in the order of its labels."""

    corpus: Sequence[float]
    """One number per score."""
    images: Sequence[Sequence[float]]
    """For each image one number per score."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: one or several scores from the same statistics, such as BLEU-1 to BLEU-4."""

    labels: Mapping[str, Label]
    """Name of each score, as in `scores.json` and the columns of `images.parquet`, and its label. Higher is better."""
    signature: str
    """Everything that determines the scores except the captions, as `name:value`."""
    statistics: Callable[[Tokens, Sequence[Tokens]], Any]
    """Returns the statistics of one image's caption, given its tokens and those of the references. Workers compute
    them, so they can be pickled."""
    score: Callable[[Sequence[Any]], MetricScores]
    """Computes the scores from the statistics of all images, at least one. Raises `MetricUnavailable`."""
    needs_java: bool = False
    """Whether it runs a Java program, which takes much longer than the other metrics."""
