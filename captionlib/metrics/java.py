"""METEOR and SPICE, which exist only as Java programs, through pycocoevalcap.

Both are optional: without them an evaluation continues, and its result states what is missing and how to install it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionlib.metrics.ngrams import Tokens


@dataclass(frozen=True)
class JavaScores:
    """METEOR and SPICE of a corpus; None for a score that was not computed, with the reason in `notes`."""

    meteor: float | None
    spice: float | None
    image_meteor: Mapping[Hashable, float]
    """METEOR by image; empty if it was not computed. The same for SPICE."""
    image_spice: Mapping[Hashable, float]
    notes: tuple[str, ...]


def score_with_java(hypotheses: Mapping[Any, Tokens], references: Mapping[Any, Sequence[Tokens]]) -> JavaScores:
    """METEOR 1.5 (Denkowski & Lavie 2014) and SPICE (Anderson et al. 2016) of tokenised captions, in [0, 1].

    Takes seconds for METEOR and minutes for SPICE on a thousand images. Nothing is downloaded.
    """
    missing = _missing()
    if missing:
        return JavaScores(None, None, {}, {}, (f"METEOR and SPICE left out: {missing}",))
    # By number: SPICE writes the keys into JSON and sorts them.
    keys = list(hypotheses)
    results = {number: [" ".join(hypotheses[key])] for number, key in enumerate(keys)}
    truths = {number: [" ".join(tokens) for tokens in references[key]] for number, key in enumerate(keys)}
    notes = []
    meteor: float | None = None
    spice: float | None = None
    image_meteor: list[float] = []
    image_spice: list[float] = []
    try:
        meteor, image_meteor = _meteor(truths, results)
    except (OSError, ValueError) as error:
        notes.append(f"METEOR left out: its Java program failed ({error})")
    if not _spice_models():
        notes.append(
            "SPICE left out: the Stanford models that it needs are not installed. With a network, and write "
            "access to the Python environment: python -m pycocoevalcap.spice.get_stanford_models"
        )
    else:
        try:
            spice, image_spice = _spice(truths, results)
        except (OSError, subprocess.CalledProcessError) as error:
            notes.append(f"SPICE left out: its Java program failed ({error}); it needs Java 8 and 8 GB of memory")
    return JavaScores(
        meteor,
        spice,
        dict(zip(keys, image_meteor, strict=False)),
        dict(zip(keys, image_spice, strict=False)),
        tuple(notes),
    )


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
        # A failure leaves the lock held, and the object's own clean-up would wait for it for ever.
        if meteor.lock.locked():
            meteor.lock.release()
    return float(score), [float(value) for value in image_scores]


def _spice(truths: dict[int, list[str]], results: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    score, image_scores = Spice().compute_score(truths, results)
    return float(score), [float(value["All"]["f"]) for value in image_scores]
