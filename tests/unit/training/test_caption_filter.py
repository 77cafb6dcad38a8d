"""Caption filters and vocabularies, on captions small enough to count."""

from __future__ import annotations

import pytest

from captionlib.training.caption_filter import build_vocabulary, has_allowed_length, is_known
from captionlib.training.settings import CaptionFilter, TrainingSettings
from captionlib.vocabulary import Vocabulary

CAPTIONS = [
    [["a", "dog"], ["a", "big", "dog", "runs"], ["dog"]],
    [["a", "zeppelin", "over", "a", "dog"]],
]


def test_length_is_between_both_bounds_inclusively() -> None:
    rules = CaptionFilter(min_words=2, max_words=4)
    assert [[has_allowed_length(c, rules) for c in of_image] for of_image in CAPTIONS] == [[True, True, False], [False]]
    assert all(has_allowed_length(c, CaptionFilter()) for of_image in CAPTIONS for c in of_image)


@pytest.mark.parametrize(
    ("min_known", "kept"), [(0.0, [3, 1]), (0.5, [3, 1]), (0.6, [2, 1]), (0.61, [2, 0]), (1.0, [2, 0])]
)
def test_the_share_of_known_words(min_known: float, kept: list[int]) -> None:
    # Known are "a" and "dog": 2 of 2, 2 of 4, 1 of 1; 3 of 5.
    vocabulary = Vocabulary(["<pad>", "<bos>", "<eos>", "<unk>", "a", "dog"])
    rules = CaptionFilter(min_known=min_known)
    assert [sum(is_known(c, vocabulary, rules) for c in of_image) for of_image in CAPTIONS] == kept


def test_the_vocabulary_by_count_and_by_size() -> None:
    # dog: 4, a: 4, the others 1
    assert build_vocabulary(CAPTIONS, TrainingSettings(min_count=2)).words[4:] == ["a", "dog"]
    assert len(build_vocabulary(CAPTIONS, TrainingSettings(min_count=1))) == 4 + 6
    by_size = build_vocabulary(CAPTIONS, TrainingSettings(min_count=1, vocabulary_size=7))
    assert by_size.words[4:] == ["a", "dog", "big"]
    assert build_vocabulary(CAPTIONS, TrainingSettings(min_count=2), ["zebra", "dog"]).words[4:] == [
        "a",
        "dog",
        "zebra",
    ]


@pytest.mark.parametrize(
    "values", [{"min_words": 0}, {"min_words": 3, "max_words": 2}, {"min_known": 1.5}, {"min_known": -0.1}]
)
def test_filters_refuse_nonsense(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(reversed(values))):
        CaptionFilter(**values)  # type: ignore[arg-type]
