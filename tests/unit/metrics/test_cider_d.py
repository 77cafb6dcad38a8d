import math
import pickle

import numpy as np
import pytest

from captionlib.metrics.cider_d import CiderD, CiderDStats, statistics

CORPUS = [
    ("a dog runs", ["a dog runs fast", "the dog is running"]),
    ("a cat sits on a mat", ["a cat on a mat"]),
    ("two men", ["two men talk", "men are talking", "a pair of men"]),
    ("", ["a red car"]),
]


def stats(hypothesis: str, *references: str) -> CiderDStats:
    return statistics(hypothesis.split(), [reference.split() for reference in references])


def test_an_exact_caption_of_rare_words_scores_10() -> None:
    corpus = stats("a b c d", "a b c d") + stats("", "e f")
    assert corpus.image_scores() == pytest.approx([10, 0])
    assert corpus.score() == pytest.approx(5)


def test_orders_that_a_caption_is_too_short_for_count_as_0() -> None:
    corpus = stats("a b", "a b") + stats("c d", "c d")
    assert corpus.image_scores() == pytest.approx([10 * 2 / 4] * 2)


def test_length_penalty_by_hand() -> None:
    # Unigrams: cosine of (1, 0) and (1, 1); 0 against 1 bigram: exp(-1² / (2 · 6²)).
    corpus = stats("a", "a b") + stats("", "c")
    assert corpus.image_scores()[0] == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))


def test_repeated_words_are_clipped() -> None:
    # Unigrams (3, 0) clipped to (1, 0): product 1, norms 3 and √2; no bigram in common; 2 against 1 bigrams.
    corpus = stats("a a a", "a b") + stats("", "c")
    assert corpus.image_scores()[0] == pytest.approx(10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72))


def test_words_of_every_image_weigh_nothing() -> None:
    corpus = stats("a", "a b") + stats("a", "a c")
    assert corpus.image_scores() == [0, 0]


def test_inverse_document_frequency_by_hand() -> None:
    # Three images; "a" in two of them weighs ln 3/2, "b" ln 3. Caption "a", reference "a b".
    a, b = math.log(3 / 2), math.log(3)
    corpus = stats("a", "a b") + stats("", "a") + stats("", "c")
    assert corpus.image_scores()[0] == pytest.approx(10 / 4 * a / math.hypot(a, b) * math.exp(-1 / 72))


def test_the_mean_over_references() -> None:
    corpus = stats("a b", "a b", "x y") + stats("", "c")
    assert corpus.image_scores()[0] == pytest.approx(10 * 2 / 4 / 2)


def test_one_image_alone_and_none_score_0() -> None:
    assert stats("a b", "a b").score() == 0
    assert CiderDStats().score() == 0


@pytest.mark.parametrize("cut", range(len(CORPUS) + 1))
def test_parts_merge_to_the_whole(cut: int) -> None:
    parts = [stats(hypothesis, *references) for hypothesis, references in CORPUS]
    whole = sum(parts, CiderDStats())
    merged = sum(parts[:cut], CiderDStats()) + sum(parts[cut:], CiderDStats())
    assert merged == whole
    assert merged.image_scores() == whole.image_scores()
    assert len(parts[0].captions) == 1  # addition leaves its operands as they were


def test_the_reward_is_the_metric_when_the_references_are_the_corpus() -> None:
    references = [[text.split() for text in texts] for _, texts in CORPUS]
    hypotheses = [hypothesis.split() for hypothesis, _ in CORPUS]
    scorer = CiderD.from_references(references)
    metric = sum((statistics(h, r) for h, r in zip(hypotheses, references, strict=True)), CiderDStats())
    order = [2, 0, 0, 3, 1]
    scores = scorer.score_many([hypotheses[key] for key in order], order)
    assert scores.dtype == np.float64
    assert scores == pytest.approx([metric.image_scores()[key] for key in order], abs=1e-12)
    again = pickle.loads(pickle.dumps(scorer)).score_many([hypotheses[0]], [0])
    assert again == pytest.approx(metric.image_scores()[:1])


def test_with_eos_a_caption_that_breaks_off_is_worth_less() -> None:
    references = {"x": [["a", "dog", "runs"]], "y": [["a", "cat"]]}
    hypotheses = [["a", "dog", "runs", "<eos>"], ["a", "dog", "runs"]]
    finished, broken_off = CiderD.from_references(references, eos=True).score_many(hypotheses, ["x", "x"])
    assert finished == pytest.approx(10)
    assert broken_off < finished
    assert references["x"] == [["a", "dog", "runs"]]


def test_a_key_without_references_and_a_wrong_number_of_keys() -> None:
    scorer = CiderD.from_references({"x": [["a"]]})
    with pytest.raises(KeyError, match="y"):
        scorer.score_many([["a"]], ["y"])
    with pytest.raises(ValueError, match="shorter"):
        scorer.score_many([["a"], ["b"]], ["x"])
