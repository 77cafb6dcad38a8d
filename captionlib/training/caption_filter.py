"""Selects the captions that are learnt, and builds the vocabulary from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from captionlib.training.settings import CaptionFilter, TrainingSettings
from captionlib.vocabulary import Vocabulary

Tokens = Sequence[str]


def has_allowed_length(caption: Tokens, settings: CaptionFilter) -> bool:
    """Whether the number of words of a caption is within the limits."""
    return settings.min_words <= len(caption) <= (settings.max_words or float("inf"))


def is_known(caption: Tokens, vocabulary: Vocabulary, settings: CaptionFilter) -> bool:
    """Whether a sufficient share of the words of a caption is in the vocabulary."""
    return sum(word in vocabulary for word in caption) >= settings.min_known * len(caption)


def build_vocabulary(
    captions: Sequence[Sequence[Tokens]], settings: TrainingSettings, always: Iterable[str] = ()
) -> Vocabulary:
    """Build the vocabulary from all captions of all images, keeping words that are frequent enough.

    Args:
        captions: tokenised captions of each image.
        settings: `min_count` and `vocabulary_size` say which words are frequent enough.
        always: further words, added whether they are frequent or not.

    Raises:
        ValueError: no word would be left.
    """
    words = (caption for of_image in captions for caption in of_image)
    frequent = Vocabulary.build(words, min_count=settings.min_count, max_size=settings.vocabulary_size)
    return Vocabulary([*frequent.words, *sorted({word for word in always if word not in frequent})])
