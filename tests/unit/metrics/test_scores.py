import pickle
from collections.abc import Sequence

import pytest

import captionlib.metrics
from captionlib import __version__
from captionlib.metrics import (
    HEADLINE,
    LABELS,
    METRICS,
    PYTHON_METRICS,
    CaptionStats,
    Label,
    Metric,
    MetricScores,
    score_captions,
)
from captionlib.metrics.ngrams import Tokens
from captionlib.metrics.scores import statistics
from captionlib.text import tokenize

HYPOTHESES = {"a.jpg": "A dog runs on the grass.", "b.jpg": "Two men talk", "c.jpg": ""}
REFERENCES = {
    "b.jpg": ["Two men are talking .", "Men talk"],
    "a.jpg": ["A dog runs on grass", "The dog's running !", "a brown dog"],
    "c.jpg": ["A red car"],
}


def test_public_names() -> None:
    assert sorted(captionlib.metrics.__all__) == [
        "CaptionStats",
        "CiderD",
        "Diversity",
        "DiversityStats",
        "HEADLINE",
        "LABELS",
        "Label",
        "MAIN_SCORE",
        "METRICS",
        "Metric",
        "MetricScores",
        "MetricUnavailable",
        "PYTHON_METRICS",
        "Scores",
        "score_captions",
    ]


def test_the_names_of_scores_are_distinct_and_the_shown_ones_are_fast() -> None:
    names = [name for metric in METRICS for name in metric.labels]
    assert len(set(names)) == len(names) == len(LABELS)
    fast = [name for metric in PYTHON_METRICS for name in metric.labels]
    assert fast == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert set(HEADLINE) < set(fast)


def test_scores_are_shown_as_papers_state_them() -> None:
    assert (LABELS["bleu_4"].title, LABELS["bleu_4"].short(0.2391)) == ("BLEU-4", "23.9")
    assert (LABELS["cider_d"].title, LABELS["cider_d"].short(0.6123)) == ("CIDEr-D", "0.612")


def words(hypothesis: Tokens, references: Sequence[Tokens]) -> int:
    return len(hypothesis)


def mean_words(images: Sequence[int]) -> MetricScores:
    return MetricScores([sum(images) / len(images)], [[number] for number in images])


def test_a_metric_of_ones_own_is_scored_like_the_others() -> None:
    own = Metric(labels={"words": Label("words")}, signature="words:1", statistics=words, score=mean_words)
    scores = score_captions(HYPOTHESES, REFERENCES, (*PYTHON_METRICS, own))
    plain = score_captions(HYPOTHESES, REFERENCES)
    assert scores.corpus == {**plain.corpus, "words": 3.0}
    assert scores.images["b.jpg"] == {**plain.images["b.jpg"], "words": 3}
    assert "|words:1|" in scores.signature


def test_scores_can_be_pickled_and_have_no_other_attributes() -> None:
    scores = pickle.loads(pickle.dumps(score_captions(HYPOTHESES, REFERENCES)))
    assert scores == score_captions(HYPOTHESES, REFERENCES)
    for name in ("meteor", "bleu_5"):
        with pytest.raises(AttributeError, match=f"there is no score '{name}'"):
            getattr(scores, name)


def test_exact_captions_score_highest() -> None:
    references = {"x": ["A man rides a horse ."], "y": ["Two dogs play in snow"]}
    scores = score_captions({"x": "a man rides a horse", "y": "Two dogs play in snow!"}, references)
    assert (scores.bleu_1, scores.bleu_4, scores.rouge_l, scores.cider_d) == pytest.approx((1, 1, 1, 10))


def test_signature_says_what_decides_the_numbers() -> None:
    assert score_captions(HYPOTHESES, REFERENCES).signature == (
        "nimages:3|nrefs:1-3|case:lc|tok:ptb-3.4.1-nopunct|bleu:corpus,closest|rouge_l:beta1.2|"
        f"cider_d:n4,sigma6,df:corpus|captionlib:{__version__}"
    )


def test_images_come_in_the_captions_order_and_average_to_the_corpus() -> None:
    scores = score_captions(HYPOTHESES, REFERENCES)
    assert list(scores.images) == list(HYPOTHESES)
    for name in ("rouge_l", "cider_d"):
        mean = sum(image[name] for image in scores.images.values()) / 3
        assert getattr(scores, name) == pytest.approx(mean)
    empty = scores.images["c.jpg"]
    assert list(empty.values()) == pytest.approx([0] * 6)


def test_parts_merge_to_the_whole() -> None:
    parts = [
        statistics(key, tokenize(text), [tokenize(reference) for reference in REFERENCES[key]])
        for key, text in HYPOTHESES.items()
    ]
    merged = (parts[0] + parts[1]) + parts[2]
    assert merged.score() == score_captions(HYPOTHESES, REFERENCES)
    assert parts[0].keys == ["a.jpg"]


def test_the_same_image_twice_or_none_is_an_error() -> None:
    part = statistics("x", ["a"], [["a"]])
    with pytest.raises(ValueError, match="1 images were added more than once"):
        (part + part).score()
    with pytest.raises(ValueError, match="no captions"):
        CaptionStats().score()


def test_images_must_be_the_same_in_both() -> None:
    with pytest.raises(ValueError, match=r"1 captions have no references: 'c.jpg'"):
        score_captions(HYPOTHESES, {**REFERENCES, "c.jpg": []})
    with pytest.raises(ValueError, match=r"2 images with references have no caption: 'b.jpg', 'c.jpg'"):
        score_captions({"a.jpg": "a"}, REFERENCES)
