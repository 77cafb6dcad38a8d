"""Selects the captions that are learnt, and builds the vocabulary from them."""

from __future__ import annotations

from collections.abc import Sequence

from captionlib.training.settings import CaptionFilter, TrainingSettings
from captionlib.vocabulary import Vocabulary

Tokens = Sequence[str]


def has_allowed_length(caption: Tokens, settings: CaptionFilter) -> bool:
    """Whether the number of words of a caption is within the limits."""
    return settings.min_words <= len(caption) <= (settings.max_words or float("inf"))


def is_known(caption: Tokens, vocabulary: Vocabulary, settings: CaptionFilter) -> bool:
    """Whether a sufficient share of the words of a caption is in the vocabulary."""
    return sum(word in vocabulary for word in caption) >= settings.min_known * len(caption)


def build_vocabulary(captions: Sequence[Sequence[Tokens]], settings: TrainingSettings) -> Vocabulary:
    """Build the vocabulary of the sufficiently frequent words.

    Raises:
        ValueError: no word remains.
    """
    words = (caption for of_image in captions for caption in of_image)
    return Vocabulary.build(words, min_count=settings.min_count, max_size=settings.vocabulary_size)
