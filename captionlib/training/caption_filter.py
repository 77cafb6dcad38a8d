"""Which captions are learnt: a split's tokenised captions → those within the filter, and the words they are made of."""

from __future__ import annotations

from collections.abc import Sequence

from captionlib.training.settings import CaptionFilter, TrainingSettings
from captionlib.vocabulary import Vocabulary

Tokens = Sequence[str]


def has_allowed_length(caption: Tokens, settings: CaptionFilter) -> bool:
    """Whether a caption has neither too few words nor too many."""
    return settings.min_words <= len(caption) <= (settings.max_words or float("inf"))


def is_known(caption: Tokens, vocabulary: Vocabulary, settings: CaptionFilter) -> bool:
    """Whether enough of a caption's words are in the vocabulary."""
    return sum(word in vocabulary for word in caption) >= settings.min_known * len(caption)


def build_vocabulary(captions: Sequence[Sequence[Tokens]], settings: TrainingSettings) -> Vocabulary:
    """The words of all images' captions that are frequent enough.

    Raises:
        ValueError: no word would be left.
    """
    words = (caption for of_image in captions for caption in of_image)
    return Vocabulary.build(words, min_count=settings.min_count, max_size=settings.vocabulary_size)
