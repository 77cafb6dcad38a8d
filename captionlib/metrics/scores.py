"""Computes metrics for raw captions and references, with a signature of the settings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captionlib.errors import UserError
from captionlib.metrics.base import Metric, MetricUnavailable
from captionlib.metrics.ngrams import Tokens
from captionlib.metrics.registry import LABELS, PYTHON_METRICS
from captionlib.text import tokenize
from captionlib.version import __version__


@dataclass(frozen=True)
class Scores:
    """Scores of a corpus. Each is also an attribute: `scores.cider_d` is `scores.corpus["cider_d"]`."""

    corpus: Mapping[str, float]
    """Score of the corpus by name; without the metrics that are not available."""
    images: Mapping[Hashable, Mapping[str, float]] = field(repr=False)
    """The scores of each image's caption by name, in the order of the captions."""
    num_images: int
    signature: str
    """Everything that determines the scores except the captions; cite it with them."""
    notes: tuple[str, ...] = ()
    """Which metrics were left out, and why."""

    def __getattr__(self, name: str) -> float:
        if name in LABELS and name in self.corpus:
            return self.corpus[name]
        raise AttributeError(f"there is no score {name!r}")


@dataclass
class CaptionStats:
    """Statistics of one caption or, after addition, of a corpus; workers' statistics are merged by addition."""

    keys: list[Hashable] = field(default_factory=list)
    """The images, in the order in which they were added."""
    num_references: list[int] = field(default_factory=list)
    """Number of references of each image."""
    statistics: list[tuple[Any, ...]] = field(default_factory=list)
    """For each image the statistics of each metric."""
    metrics: tuple[Metric, ...] = PYTHON_METRICS
    """The metrics; the same in all parts that are added."""

    def __add__(self, other: CaptionStats) -> CaptionStats:
        merged = CaptionStats(metrics=self.metrics)
        merged += self
        merged += other
        return merged

    def __iadd__(self, other: CaptionStats) -> CaptionStats:
        self.keys.extend(other.keys)
        self.num_references.extend(other.num_references)
        self.statistics.extend(other.statistics)
        return self

    def score(self) -> Scores:
        """The scores of everything that was added.

        Raises:
            ValueError: nothing was added, or an image twice.
        """
        if not self.keys:
            raise UserError("no captions to score")
        images: dict[Hashable, dict[str, float]] = {key: {} for key in self.keys}
        if len(images) != len(self.keys):
            raise ValueError(f"{len(self.keys) - len(images)} images were added more than once")
        corpus: dict[str, float] = {}
        signatures: list[str] = []
        left_out: dict[str, list[str]] = {}
        for metric, statistics in zip(self.metrics, zip(*self.statistics, strict=True), strict=True):
            try:
                found = metric.score(statistics)
            except MetricUnavailable as error:
                left_out.setdefault(str(error), []).extend(label.title for label in metric.labels.values())
                continue
            signatures.append(metric.signature)
            corpus |= zip(metric.labels, found.corpus, strict=True)
            for image, values in zip(images.values(), found.images, strict=True):
                image |= zip(metric.labels, values, strict=True)
        notes = tuple(f"{' and '.join(titles)} left out: {reason}" for reason, titles in left_out.items())
        return Scores(corpus, images, len(images), signature(self.num_references, signatures), notes)


def statistics(
    key: Hashable,
    hypothesis: Tokens,
    references: Sequence[Tokens],
    metrics: tuple[Metric, ...] = PYTHON_METRICS,
) -> CaptionStats:
    """Return the statistics of one image's tokenised caption."""
    found = tuple(metric.statistics(hypothesis, references) for metric in metrics)
    return CaptionStats([key], [len(references)], [found], metrics)


def score_captions(
    hypotheses: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    metrics: tuple[Metric, ...] = PYTHON_METRICS,
) -> Scores:
    """Score raw captions with BLEU-1..4, ROUGE-L and CIDEr-D, or with other metrics; the texts are tokenised here.

    Args:
        hypotheses: for each image its caption; an empty one counts as wrong, not as missing.
        references: for each image its references, one or more. The same images as `hypotheses`: references of
            others would change the document frequencies, and with them CIDEr-D.
        metrics: `captionlib.metrics.METRICS` also computes METEOR and SPICE, which need Java.

    Raises:
        UserError: the images differ, or one has no references.
    """
    check_same_images(hypotheses, references)
    stats = CaptionStats(metrics=metrics)
    for key, hypothesis in hypotheses.items():
        stats += statistics(key, tokenize(hypothesis), [tokenize(text) for text in references[key]], metrics)
    return stats.score()


def check_same_images(hypotheses: Mapping[Any, object], references: Mapping[Any, Sequence[object]]) -> None:
    """Raises `UserError` unless every caption has references and every image with references a caption."""
    for what, keys in (
        ("captions have no references", [key for key in hypotheses if not references.get(key)]),
        ("images with references have no caption", [key for key in references if key not in hypotheses]),
    ):
        if keys:
            named = ", ".join(map(repr, keys[:3])) + (", …" if len(keys) > 3 else "")
            raise UserError(f"{len(keys)} {what}: {named}; score the same images in both")


def signature(num_references: Sequence[int], metrics: Sequence[str]) -> str:
    """Return the settings that determine the scores, as in sacreBLEU (Post 2018): `name:value` joined by `|`.

    Args:
        num_references: of each image.
        metrics: signature of each metric.
    """
    fewest, most = min(num_references), max(num_references)
    return "|".join(
        (
            f"nimages:{len(num_references)}",
            f"nrefs:{fewest}" if fewest == most else f"nrefs:{fewest}-{most}",
            "case:lc",
            "tok:ptb-3.4.1-nopunct",
            *metrics,
            f"captionlib:{__version__}",
        )
    )
