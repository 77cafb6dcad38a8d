"""Confidence: the calibrated probability that a caption is right, computed from evidence of the search.

It is a logistic model of a few numbers, fitted on images that the captioner was not trained on (`jobs.calibrate`). A
caption counts as right if its CIDEr-D against the reference captions of the image is above 0.5.

M captions, F inputs of the logistic model: the signals, then one for each word of the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from captionlib.errors import UserError

if TYPE_CHECKING:  # checkpoints are read without importing PyTorch
    from torch import Tensor

    from captionlib.search import Hypothesis
    from captionlib.word_detector import DetectedWords

SIGNALS = (
    "log_prob",
    "log_prob_per_word",
    "lowest_log_prob",
    "entropy",
    "first_entropy",
    "rare_entropy",
    "rare_log_prob",
    "rare_prob",
    "rarity",
    "num_words",
    "feature_norm",
)
"""Names of the signals, in the order of `Evidence.signals`; `evidence` computes them."""
DETECTOR_SIGNALS = ("detected", "detected_share", "detected_gain", "detectable")
"""Names of the signals of captioners with a word detector: how probable the content words of the caption are, each
weighted by -log of its frequency; how much of what the detector expects they cover; how much more probable they are
than in other images; and how much the detector expects of this image at all."""
RIGHT_ABOVE = 0.5
"""CIDEr-D of an image above which its caption counts as right."""


@dataclass(frozen=True)
class Evidence:
    """What confidence is computed from."""

    words: tuple[str, ...]
    signals: tuple[float, ...]
    """One number for each of `SIGNALS`, and of `DETECTOR_SIGNALS` if there is a word detector."""


def evidence(
    hypothesis: Hypothesis,
    words: Sequence[str],
    feature_norm: float,
    detected: DetectedWords | None = None,
) -> Evidence:
    """Collect the evidence about a caption.

    "Rare" weighs each word by the logarithm of its place in the vocabulary, whose words are in the order of their
    frequency: CIDEr-D too counts rare words most.

    Args:
        hypothesis: from a search that kept its steps.
        words: the words of the hypothesis.
        feature_norm: Euclidean norm of the image's mean feature vector.
        detected: what the captioner's word detector says about the image, if it has one.

    Raises:
        UserError: the search did not keep its steps.
    """
    log_probs, entropies = np.array(hypothesis.word_log_probs), np.array(hypothesis.entropies)
    if not len(log_probs):
        raise UserError("confidence needs the log-probability of each word: search with keep_steps=True")
    places = [*hypothesis.tokens, 0][: len(log_probs)]  # `<eos>` counts as the most frequent word, with rank 0
    weights = np.log1p(np.array(places, float))
    share = weights / max(float(weights.sum()), 1e-9)
    signals = (
        hypothesis.log_prob,
        float(log_probs.mean()),
        float(log_probs.min()),
        float(entropies.mean()),
        float(entropies[:4].mean()),
        float(share @ entropies),
        float(share @ log_probs),
        float(share @ np.exp(log_probs)),
        float(weights.mean()),
        float(len(log_probs)),
        feature_norm,
    )
    assert len(signals) == len(SIGNALS)
    return Evidence(tuple(words), signals if detected is None else signals + detected.signals(hypothesis.tokens))


def mean_feature_norms(features: Tensor) -> list[float]:
    """Features (B, N, D) → Euclidean norms of the mean over the positions, B numbers."""
    norms: list[float] = features.float().mean(dim=1).norm(dim=-1).tolist()
    return norms


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted logistic model, as `config.json` holds it under `confidence`."""

    signals: tuple[tuple[str, float, float, float], ...]
    """Name, mean and standard deviation on the images it was fitted on, and weight per standard deviation."""
    words: tuple[tuple[str, float], ...]
    """Word, and what its presence in the caption adds to the logit."""
    bias: float
    num_captions: int
    """Number of captions it was fitted on."""
    num_right: int
    """Number of these that were right."""
    right_above: float = RIGHT_ABOVE
    """CIDEr-D above which they counted as right."""
    fitted_on: str = ""
    """Description of the images it was fitted on."""
    area_under_roc: float | None = None
    """Cross-validated: each caption was judged by a model that was fitted without it."""
    calibration_error: float | None = None
    """Expected calibration error, likewise."""

    def __post_init__(self) -> None:
        names = tuple(name for name, *_ in self.signals)
        if names not in (SIGNALS, SIGNALS + DETECTOR_SIGNALS):
            raise UserError(
                f"confidence was fitted on the signals {', '.join(names)}, and this version of the project computes "
                f"{', '.join(SIGNALS + DETECTOR_SIGNALS)}: "
                'take "confidence" out of config.json, and calibrate with python -m jobs.calibrate'
            )

    def __call__(self, found: Evidence) -> float:
        """Return the probability in [0, 1] that a caption is right."""
        present = set(found.words)
        logit = self.bias + sum(weight for word, weight in self.words if word in present)
        for value, (_, mean, scale, weight) in zip(found.signals, self.signals, strict=True):
            logit += weight * (value - mean) / scale
        return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))


@dataclass(frozen=True)
class Fitter:
    """How the logistic model is fitted.

    Args:
        ridge: penalty on the squared weight of a word, per standard deviation of its input (Hastie et al. 2009,
            section 4.4.4). The signals, which are few, have a tenth of it.
        min_captions: captions that have to hold a word for it to be an input.
        num_words: most words that are inputs, the most frequent first.
    """

    ridge: float = 300.0
    min_captions: int = 5
    num_words: int = 150

    def fit(self, found: Sequence[Evidence], is_right: Sequence[bool]) -> Calibration:
        """Fit the model.

        Raises:
            UserError: there are fewer than ten right or fewer than ten wrong captions.
        """
        right = np.array(is_right, float)
        if min(right.sum(), (1 - right).sum()) < 10:
            raise UserError(
                f"{int(right.sum())} of {len(right)} captions are right: fitting needs at least ten right and ten "
                "wrong ones; give more images"
            )
        counts = Counter(word for one in found for word in set(one.words))
        words = [word for word, count in counts.most_common(self.num_words) if count >= self.min_captions]
        names = (SIGNALS + DETECTOR_SIGNALS)[: len(found[0].signals)]
        inputs = np.concatenate([_signals(found), _words(found, words)], axis=1)  # (M, F)
        mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
        scale[scale == 0] = 1.0
        penalties = np.array([self.ridge / 10] * len(names) + [self.ridge] * len(words))
        weights, bias = _logistic_regression((inputs - mean) / scale, right, penalties)
        of_signals, of_words = weights[: len(names)], weights[len(names) :] / scale[len(names) :]
        signals = zip(names, mean.tolist(), scale.tolist(), of_signals.tolist(), strict=False)
        return Calibration(
            signals=tuple(signals),
            words=tuple(zip(words, of_words.tolist(), strict=True)),
            bias=float(bias - of_words @ mean[len(names) :]),
            num_captions=len(right),
            num_right=int(right.sum()),
        )


def cross_validated(
    found: Sequence[Evidence], is_right: Sequence[bool], fitter: Fitter, folds: int = 10, seed: int = 0
) -> np.ndarray:
    """Return the probability (M,) of each caption from a model fitted without the caption's fold.

    Args:
        found: evidence of M captions.
        is_right: whether each is right.
        fitter: fits each fold's model.
        folds: parts into which the captions are divided at random.
        seed: for the division.
    """
    order = np.random.default_rng(seed).permutation(len(found))
    probabilities = np.zeros(len(found))
    for fold in range(folds):
        held_out = order[fold::folds]
        others = np.setdiff1d(order, held_out)
        model = fitter.fit([found[i] for i in others], [is_right[i] for i in others])
        probabilities[held_out] = [model(found[i]) for i in held_out]
    return probabilities


def _signals(found: Sequence[Evidence]) -> np.ndarray:
    return np.array([one.signals for one in found], float)


def _words(found: Sequence[Evidence], words: Sequence[str]) -> np.ndarray:
    """(M, words): 1 where the caption has the word."""
    return np.array([[word in one.words for word in words] for one in found], float).reshape(len(found), len(words))


def _logistic_regression(inputs: np.ndarray, right: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit penalised logistic regression by Newton's method: inputs (M, F), right (M,), penalties (F,) → weights (F,)
    and bias."""
    design = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)  # the bias is not penalised
    penalty = np.append(penalties, 1e-9)
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -50, 50)))
        gradient = design.T @ (chance - right) + penalty * weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights[:-1], float(weights[-1])
