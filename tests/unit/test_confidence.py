"""Confidence: its evidence and its logistic model, on paper; and that a checkpoint carries it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import CheckpointError, add_confidence, checkpoint_fingerprint, load_checkpoint
from captionlib.confidence import DETECTOR_SIGNALS, SIGNALS, Calibration, Evidence, Fitter, cross_validated, evidence
from captionlib.metrics.calibration import area_under_roc
from captionlib.search import Hypothesis
from captionlib.word_detector import ContentWords, DetectedWords

NOTHING = tuple((name, 0.0, 1.0, 0.0) for name in SIGNALS)


def test_evidence_by_hand() -> None:
    found = Hypothesis(
        (4, 9), math.log(0.1), True, word_log_probs=(math.log(0.5), math.log(0.2), 0.0), entropies=(1.0, 2.0, 0.0)
    )
    signals = dict(zip(SIGNALS, evidence(found, ["a", "zebra"], 3.0).signals, strict=True))
    assert signals["log_prob"] == pytest.approx(math.log(0.1))
    assert signals["log_prob_per_word"] == pytest.approx(math.log(0.1) / 3)
    assert signals["lowest_log_prob"] == pytest.approx(math.log(0.2))
    assert signals["entropy"] == pytest.approx(1.0)
    one, other = math.log(5), math.log(10)  # of the places 4 and 9; that of the end is log 1
    assert signals["rare_prob"] == pytest.approx((0.5 * one + 0.2 * other) / (one + other))
    assert signals["rare_entropy"] == pytest.approx((1 * one + 2 * other) / (one + other))
    assert signals["rarity"] == pytest.approx((one + other) / 3)
    assert signals["num_words"] == 3
    assert signals["feature_norm"] == 3


def test_evidence_needs_the_steps_of_the_search() -> None:
    with pytest.raises(ValueError, match="keep_steps"):
        evidence(Hypothesis((4,), -1.0, True), ["a"], 1.0)


def test_a_probability_by_hand() -> None:
    signals = (("log_prob", -10.0, 2.0, 0.5), *NOTHING[1:])
    model = Calibration(signals=signals, words=(("zebra", 1.0), ("dog", -4.0)), bias=-0.5, num_captions=9, num_right=5)
    values = (-8.0, *[7.0] * (len(SIGNALS) - 1))
    # -0.5 + 0.5 * (-8 + 10) / 2 + 1 = 1
    assert model(Evidence(("a", "zebra", "zebra"), values)) == pytest.approx(1 / (1 + math.exp(-1)))


def test_signals_of_another_version_are_refused() -> None:
    with pytest.raises(ValueError, match=r"jobs\.calibrate"):
        Calibration(signals=NOTHING[1:], words=(), bias=0.0, num_captions=9, num_right=5)


def examples(count: int) -> tuple[list[Evidence], list[bool]]:
    """Right with the probability that a logistic model of one signal and one word gives."""
    rng = np.random.default_rng(0)
    found, right = [], []
    for _ in range(count):
        signals = rng.standard_normal(len(SIGNALS))
        words = ("zebra",) if rng.random() < 0.5 else ("dog",)
        logit = 1.5 * signals[0] + (1.0 if words == ("zebra",) else -1.0)
        found.append(Evidence(words, tuple(signals.tolist())))
        right.append(bool(rng.random() < 1 / (1 + math.exp(-logit))))
    return found, right


def test_fitting_finds_the_model_that_made_the_examples() -> None:
    found, right = examples(4000)
    model = Fitter(ridge=1e-3).fit(found, right)
    weights = {name: weight / scale for name, _, scale, weight in model.signals}
    assert weights["log_prob"] == pytest.approx(1.5, abs=0.15)
    assert max(abs(weights[name]) for name in SIGNALS[1:]) < 0.15
    words = dict(model.words)
    assert words["zebra"] - words["dog"] == pytest.approx(2, abs=0.2)
    assert (model.num_captions, model.num_right) == (4000, sum(right))


def test_a_fitted_model_is_right_on_average() -> None:
    found, right = examples(500)
    model = Fitter(ridge=30).fit(found, right)
    assert np.mean([model(one) for one in found]) == pytest.approx(np.mean(right), abs=1e-6)


def test_cross_validation_judges_nothing_by_itself() -> None:
    found, right = examples(300)
    honest = area_under_roc(cross_validated(found, right, Fitter(ridge=1)), right)
    assert 0.75 < honest < 0.95
    # With answers drawn at random nothing can be learnt; fitted and judged on the same captions it would seem so.
    drawn = (np.random.default_rng(1).random(300) < 0.5).tolist()
    assert abs(area_under_roc(cross_validated(found, drawn, Fitter(ridge=1)), drawn) - 0.5) < 0.12


def test_fitting_needs_right_and_wrong_ones() -> None:
    found, _ = examples(30)
    with pytest.raises(ValueError, match="2 of 30 captions are right"):
        Fitter().fit(found, [True, True] + [False] * 28)


# ---- in a checkpoint ----


@pytest.fixture
def calibrated(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny_checkpoint, folder)
    signals = (("log_prob", -10.0, 2.0, 0.5), *NOTHING[1:])
    add_confidence(folder, Calibration(signals=signals, words=(("a", 0.3),), bias=0.1, num_captions=9, num_right=5))
    return folder


def test_a_checkpoint_carries_its_calibration(calibrated: Path, tiny_checkpoint: Path) -> None:
    stored = load_checkpoint(calibrated).confidence
    assert stored is not None
    assert stored.words == (("a", 0.3),)
    assert stored.area_under_roc is None
    assert checkpoint_fingerprint(calibrated) != checkpoint_fingerprint(tiny_checkpoint)
    add_confidence(calibrated, replace(stored, bias=0.2))
    again = load_checkpoint(calibrated).confidence
    assert again is not None
    assert again.bias == 0.2


def test_a_damaged_calibration_is_named(calibrated: Path) -> None:
    config = calibrated / "config.json"
    config.write_text(config.read_text().replace('"num_right": 5', '"num_right": "five"'))
    with pytest.raises(CheckpointError, match=r"confidence\.num_right"):
        load_checkpoint(calibrated)


def test_the_predictor_gives_confidence_to_every_caption(calibrated: Path, tiny_checkpoint: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with_it, without = (Predictor.from_checkpoint(folder, engine="torch") for folder in (calibrated, tiny_checkpoint))
    plain = without.caption_pixels(noise)
    assert all(caption.confidence is None for of_image in plain for caption in of_image)
    for of_image, others in zip(with_it.caption_pixels(noise), plain, strict=True):
        for caption, other in zip(of_image, others, strict=True):
            assert (caption.text, caption.log_prob) == (other.text, other.log_prob)
            assert caption.log_prob is not None
            has_a = "a" in caption.text.split()
            logit = 0.1 + 0.5 * (caption.log_prob + 10) / 2 + 0.3 * has_a
            assert caption.confidence == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_evidence_of_a_word_detector_by_hand() -> None:
    found = Hypothesis((4, 5), -3.0, True, word_log_probs=(-1.0, -2.0, -0.1), entropies=(1.0, 2.0, 0.0))
    words = ContentWords.of(np.array([0, 0, 0, 0, 0.9, 0.1]))
    detected = DetectedWords(np.array([0, 0, 0, 0, 0.9, 0.5]), words)
    collected = evidence(found, ["a", "dog"], 3.0, detected)
    signals = dict(zip(SIGNALS + DETECTOR_SIGNALS, collected.signals, strict=True))
    assert signals["log_prob"] == -3
    assert signals["detected"] == pytest.approx(0.5)
    assert signals["detectable"] == pytest.approx(0.5 * -math.log(0.1 + 1e-4))
