"""Which captions are learnt: a split's tokenised captions → those within the filter, and the words they are made of."""

from __future__ import annotations

from collections.abc import Sequence

from captionlib.training.settings import CaptionFilter, TrainingSettings
from captionlib.vocabulary import Vocabulary

Tokens = Sequence[str]


def select_captions(captions: Sequence[Sequence[Tokens]], settings: CaptionFilter) -> list[list[Tokens]]:
    """Per image its captions of an allowed length; an image may be left with none."""
    longest = settings.max_words or float("inf")
    return [[c for c in of_image if settings.min_words <= len(c) <= longest] for of_image in captions]


def select_known(
    captions: Sequence[Sequence[Tokens]], vocabulary: Vocabulary, settings: CaptionFilter
) -> list[list[Tokens]]:
    """Per image its captions of whose words enough are in the vocabulary; an image may be left with none."""
    return [
        [c for c in of_image if sum(word in vocabulary for word in c) >= settings.min_known * len(c)]
        for of_image in captions
    ]


def build_vocabulary(captions: Sequence[Sequence[Tokens]], settings: TrainingSettings) -> Vocabulary:
    """The words of all images' captions that are frequent enough.

    Raises:
        ValueError: no word would be left.
    """
    words = (caption for of_image in captions for caption in of_image)
    return Vocabulary.build(words, min_count=settings.min_count, max_size=settings.vocabulary_size)
