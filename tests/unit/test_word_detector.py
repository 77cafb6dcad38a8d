"""The word detector: its opinion of a caption on paper, and its training on words that the features tell."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from captionlib.config import DetectorConfig
from captionlib.training.detector import mean_loss, pooled_views, train_detector, word_shares
from captionlib.training.settings import DetectorTraining
from captionlib.word_detector import ContentWords, DetectedWords, WordDetector, pool

# The four special words, "a", "dog", "zebra", and a word that no caption contains.
FREQUENCIES = np.array([0, 0, 0, 0.5, 0.9, 0.2, 0.02, 0])
A, DOG, ZEBRA, UNSEEN = 4, 5, 6, 7
PROBABILITIES = np.array([0, 0, 0, 0.5, 0.9, 0.4, 0.1, 0])


@pytest.fixture
def detected() -> DetectedWords:
    return DetectedWords(PROBABILITIES, ContentWords.of(FREQUENCIES))


def test_pooling_by_hand() -> None:
    features = torch.tensor([[[1.0, 5.0], [3.0, 1.0]]])
    assert pool(features).tolist() == [[2.0, 3.0, 3.0, 5.0]]


def test_the_detector_is_one_hidden_layer() -> None:
    detector = WordDetector(DetectorConfig(hidden_dim=1, dropout=0.0), 1, 2).eval()
    with torch.no_grad():
        detector.hidden.weight.copy_(torch.tensor([[1.0, -1.0]]))
        detector.hidden.bias.copy_(torch.tensor([4.0]))
        detector.output.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        detector.output.bias.zero_()
    [found] = detector.detect(torch.tensor([[[1.0], [3.0]]]))
    # The mean is 2 and the maximum 3: the hidden unit is 2 - 3 + 4 = 3.
    assert found.probabilities == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(6))])


def test_frequent_special_and_unseen_words_say_nothing(detected: DetectedWords) -> None:
    assert detected.words.among([3, A, DOG, ZEBRA, DOG, UNSEEN]) == [DOG, ZEBRA]
    assert detected.words.information[DOG] == pytest.approx(-math.log(0.2 + 1e-4))


def test_log_probability_by_hand(detected: DetectedWords) -> None:
    expected = (math.log(0.4 + 1e-3) + math.log(0.1 + 1e-3)) / 2
    assert detected.log_probability([A, DOG, A, ZEBRA]) == pytest.approx(expected)
    assert detected.log_probability([A, A]) == 0


def test_signals_by_hand(detected: DetectedWords) -> None:
    dog, zebra = -math.log(0.2 + 1e-4), -math.log(0.02 + 1e-4)
    detected_, share, gain, detectable = detected.signals([A, DOG])
    assert detected_ == pytest.approx(0.4)
    assert share == pytest.approx(0.4 * dog / (0.4 + 0.1 + 0.1))
    assert gain == pytest.approx(math.log(0.401 / 0.201))
    assert detectable == pytest.approx(0.4 * dog + 0.1 * zebra)
    assert detected.signals([A]) == pytest.approx((0, 0, 0, detectable))


def test_shares_are_of_captions() -> None:
    shares = word_shares([[[4, 5, 4], [5]], [[6]]], None, 7)
    assert shares.tolist() == [[0, 0, 0, 0, 0.5, 1, 0], [0, 0, 0, 0, 0, 0, 1]]
    weighted = word_shares([[[4], [5]]], [[3.0, 1.0]], 7)
    assert weighted.tolist() == [[0, 0, 0, 0, 0.75, 0.25, 0]]


def examples(count: int) -> tuple[np.ndarray, torch.Tensor]:
    """Features (count, 2, 3) whose first channel is high in one position where word 4 is used; word 5 is random."""
    generator = np.random.default_rng(0)
    shown = generator.random(count) < 0.5
    features = generator.normal(0, 0.1, (count, 2, 3)).astype(np.float16)
    features[np.arange(count), generator.integers(2, size=count), 0] += 100 * shown  # inputs may have any scale
    random = generator.random(count) < 0.5
    return features, word_shares(
        [[[4] * int(s) + [5] * int(r) + [6]] for s, r in zip(shown, random, strict=True)], None, 7
    )


def test_training_finds_what_the_features_tell() -> None:
    features, shares = examples(600)
    [pooled] = pooled_views([features], np.arange(600))
    losses: list[float] = []
    detector = train_detector(
        [pooled[:500]],
        shares[:500],
        DetectorConfig(hidden_dim=8, dropout=0.0),
        DetectorTraining(epochs=8, images_per_step=20, learning_rate=0.02),
        lambda epoch, loss: losses.append(loss),
    )
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    probabilities = np.stack(
        [found.probabilities for found in detector.detect(torch.from_numpy(features[500:]).float())]
    )
    has_word = shares[500:, 4].numpy() > 0.5
    assert probabilities[has_word, 4].min() > 0.9
    assert probabilities[~has_word, 4].max() < 0.1
    assert np.abs(probabilities[:, 5] - 0.5).mean() < 0.2  # nothing tells of this word
    assert probabilities[:, 6].min() > 0.99
    here, without = mean_loss(detector, pooled[500:], shares[500:])
    assert here < without - 0.5


def test_views_are_drawn_per_image() -> None:
    """The second view tells nothing, so that a detector that had seen it alone could not learn."""
    features, shares = examples(300)
    views = pooled_views([features, np.zeros_like(features)], np.arange(300))
    settings = DetectorTraining(epochs=10, images_per_step=20, learning_rate=0.02)
    config = DetectorConfig(hidden_dim=8, dropout=0.0)
    both = train_detector(views, shares, config, settings, lambda *_: None)
    blind = train_detector(views[1:], shares, config, settings, lambda *_: None)
    losses = [mean_loss(detector, views[0], shares)[0] for detector in (both, blind)]
    assert losses[0] < losses[1] - 0.3


def test_the_same_seed_gives_the_same_detector() -> None:
    features, shares = examples(60)
    views = pooled_views([features], np.arange(60))
    settings = DetectorTraining(epochs=1, images_per_step=20)
    first, again, other = (
        train_detector(views, shares, DetectorConfig(hidden_dim=4), s, lambda *_: None).state_dict()
        for s in (settings, settings, replace(settings, seed=1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])
