import pytest

from captionlib.metrics.diversity import Diversity, DiversityStats, statistics

CAPTIONS = ["a dog runs", "a dog runs", "a man on a", "a bench to sit on", ""]


def test_by_hand() -> None:
    stats = statistics(caption.split() for caption in CAPTIONS)
    assert stats.score() == Diversity(
        num_captions=5,
        num_distinct=4,
        vocabulary_used=8,  # a dog runs man on bench to sit
        mean_length=pytest.approx((3 + 3 + 4 + 5 + 0) / 5),  # type: ignore[arg-type]
        share_dangling=pytest.approx(2 / 5),  # type: ignore[arg-type]  # "a man on a", and the empty one
        share_from_training=None,
    )


def test_captions_of_the_training_set_are_counted_as_often_as_they_occur() -> None:
    stats = statistics(caption.split() for caption in CAPTIONS)
    training = {("a", "dog", "runs"), ("a", "cat")}
    assert stats.score(training).share_from_training == pytest.approx(2 / 5)


def test_parts_merge_to_the_whole() -> None:
    parts = [statistics([caption.split()]) for caption in CAPTIONS]
    assert sum(parts, DiversityStats()) == statistics(caption.split() for caption in CAPTIONS)
    assert parts[0] == statistics([["a", "dog", "runs"]])


def test_no_captions() -> None:
    assert DiversityStats().score() == Diversity(0, 0, 0, 0.0, 0.0, None)
