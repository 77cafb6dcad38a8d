"""METEOR and SPICE, which exist only as Java programs, through pycocoevalcap.

Both are optional: without them an evaluation continues, and its result states what is missing and how to install it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from captionlib.metrics.base import Label, Metric, MetricScores, MetricUnavailable
from captionlib.metrics.ngrams import Tokens


class JavaStats(NamedTuple):
    """One image's caption and references, as the Java programs read them."""

    hypothesis: str
    references: tuple[str, ...]


Program = Callable[[dict[int, list[str]], dict[int, list[str]]], tuple[float, list[float]]]
"""Takes the references and the captions by number; returns the score of the corpus and those of the images."""


def statistics(hypothesis: Tokens, references: Sequence[Tokens]) -> JavaStats:
    """Return one image's caption and references as text."""
    return JavaStats(" ".join(hypothesis), tuple(" ".join(tokens) for tokens in references))


def _meteor_scores(images: Sequence[JavaStats]) -> MetricScores:
    _check_installed()
    try:
        return _run(_meteor, images)
    except (OSError, ValueError) as error:
        raise MetricUnavailable(f"its Java program failed ({error})") from error


def _spice_scores(images: Sequence[JavaStats]) -> MetricScores:
    _check_installed()
    if not _spice_models():
        raise MetricUnavailable(
            "the Stanford models that it needs are not installed. With a network, and write "
            "access to the Python environment: python -m pycocoevalcap.spice.get_stanford_models"
        )
    try:
        return _run(_spice, images)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MetricUnavailable(f"its Java program failed ({error}); it needs Java 8 and 8 GB of memory") from error


METEOR = Metric(
    labels={"meteor": Label("METEOR")},
    signature="meteor:1.5",
    statistics=statistics,
    score=_meteor_scores,
    needs_java=True,
)
"""METEOR 1.5 (Denkowski & Lavie 2014), in [0, 1]. Takes seconds for a thousand images."""
SPICE = Metric(
    labels={"spice": Label("SPICE")},
    signature="spice:1.0",
    statistics=statistics,
    score=_spice_scores,
    needs_java=True,
)
"""SPICE (Anderson et al. 2016), in [0, 1]. Takes minutes for a thousand images. Nothing is downloaded."""


def _run(program: Program, images: Sequence[JavaStats]) -> MetricScores:
    # By number, because SPICE writes the keys into JSON and sorts them.
    truths = {number: list(image.references) for number, image in enumerate(images)}
    results = {number: [image.hypothesis] for number, image in enumerate(images)}
    score, image_scores = program(truths, results)
    return MetricScores([score], [[value] for value in image_scores])


def _check_installed() -> None:
    missing = _missing()
    if missing:
        raise MetricUnavailable(missing)


def _missing() -> str:
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "pycocoevalcap is not installed (pip install 'captionlib[eval]')"
    if shutil.which("java") is None:
        return "there is no Java on the PATH (such as Debian's default-jre-headless)"
    return ""


def _spice_models() -> bool:
    package = importlib.util.find_spec("pycocoevalcap.spice")
    assert package is not None
    assert package.origin is not None
    library = Path(package.origin).parent / "lib"
    return all((library / f"stanford-corenlp-3.6.0{part}.jar").exists() for part in ("", "-models"))


def _meteor(truths: dict[int, list[str]], results: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        score, image_scores = meteor.compute_score(truths, results)
    finally:
        # After a failure the lock is still held, and the clean-up of the object would wait for it forever.
        if meteor.lock.locked():
            meteor.lock.release()
    return float(score), [float(value) for value in image_scores]


def _spice(truths: dict[int, list[str]], results: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    score, image_scores = Spice().compute_score(truths, results)
    return float(score), [float(value["All"]["f"]) for value in image_scores]
