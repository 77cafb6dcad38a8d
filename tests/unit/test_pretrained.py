"""The checkpoint that ships: whole, small enough to ship, and of use on photos that it has not been trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import CARD, check_checkpoint, load_checkpoint, resolve_checkpoint

PHOTOS = Path(__file__).parents[1] / "photos"
COCO_CATEGORIES = """
    airplane, apple, backpack, banana, baseball bat, baseball glove, bear, bed, bench, bicycle, bird, boat,
    book, bottle, bowl, broccoli, bus, cake, car, carrot, cat, cell phone, chair, clock, couch, cow, cup, dining
    table, dog, donut, elephant, fire hydrant, fork, frisbee, giraffe, hair drier, handbag, horse, hot dog,
    keyboard, kite, knife, laptop, microwave, motorcycle, mouse, orange, oven, parking meter, person, pizza,
    potted plant, refrigerator, remote, sandwich, scissors, sheep, sink, skateboard, skis, snowboard, spoon,
    sports ball, stop sign, suitcase, surfboard, teddy bear, tennis racket, tie, toaster, toilet, toothbrush,
    traffic light, train, truck, tv, umbrella, vase, wine glass, zebra
"""
PEOPLE = {"man", "woman", "person", "boy", "girl", "child", "people"}


def test_it_is_whole() -> None:
    directory = resolve_checkpoint()
    check_checkpoint(directory)
    checkpoint = load_checkpoint(directory)
    assert len(checkpoint.vocabulary) > 1000
    assert checkpoint.training["scores"]["cider_d"] > 0.45
    card = (directory / CARD).read_text(encoding="utf-8")
    assert checkpoint.model.encoder.name in card
    assert "CIDEr-D" in card


def test_it_has_a_word_for_every_category_of_coco() -> None:
    vocabulary = load_checkpoint(resolve_checkpoint()).vocabulary
    names = [name.split() for name in COCO_CATEGORIES.split(",")]
    assert len(names) == 80
    assert [name for name in names if not all(word in vocabulary for word in name)] == []


def test_it_knows_its_confidence(predictor: Predictor) -> None:
    stored = load_checkpoint(resolve_checkpoint()).confidence
    assert stored is not None
    assert stored.area_under_roc is not None
    assert stored.area_under_roc > 0.7
    assert stored.calibration_error is not None
    assert stored.calibration_error <= 0.08
    found = [captions[0].confidence for captions in predictor.caption(sorted(PHOTOS.glob("*.jpg")))]
    assert all(confidence is not None and 0 < confidence < 1 for confidence in found)
    assert len(set(found)) == len(found)


def test_it_is_small_enough_to_ship() -> None:
    size = sum(file.stat().st_size for file in resolve_checkpoint().iterdir())
    assert size < 25e6


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_checkpoint()


@pytest.mark.parametrize(
    ("photo", "any_of"),
    [("shepherd_dog.jpg", {"dog", "shepherd"}), ("astronaut.jpg", PEOPLE), ("photographer.jpg", PEOPLE)],
)
def test_it_sees_what_the_photo_is_of(predictor: Predictor, photo: str, any_of: set[str]) -> None:
    (captions,) = predictor.caption([PHOTOS / photo])
    assert any_of & set(captions[0].text.split())


def test_its_captions_are_sentences(predictor: Predictor) -> None:
    captions = [found[0] for found in predictor.caption(sorted(PHOTOS.glob("*.jpg")))]
    assert all(4 <= (caption.num_tokens or 0) <= predictor.search.max_tokens for caption in captions)
    assert all("<" not in caption.text for caption in captions)
    assert len({caption.text for caption in captions}) == len(captions)
