import dataclasses

import pytest

import captionlib.metrics
from captionlib import __version__
from captionlib.metrics import CaptionStats, score_captions
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
        "ImageScores",
        "JavaScores",
        "Scores",
        "score_captions",
        "score_with_java",
    ]


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
        mean = sum(getattr(image, name) for image in scores.images.values()) / 3
        assert getattr(scores, name) == pytest.approx(mean)
    empty = scores.images["c.jpg"]
    assert dataclasses.astuple(empty) == pytest.approx((0,) * 6)


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
