"""Kosmos-2 (Peng et al. 2023), such as microsoft/kosmos-2-patch14-224. The prompt is the beginning of the caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from captionlib.captioners.hub.families.base import Family

_PLACES = re.compile(r"<object>.*?</object>|<patch_index_\d+>")
_TAGS = re.compile(r"</?(?:grounding|phrase|object|doc|chunk|line|image|delimiter_of_multi_objects/?)>")


class Kosmos2(Family):
    """Phrases may be marked by tags that are followed by locations. The words are kept; tags and locations are
    removed.
    """

    noun = "Kosmos-2"
    default_prompt = "An image of"
    max_tokens = 64

    def read(self, processor: Any, tokens: Sequence[int]) -> str:
        """See `Family`."""
        return _TAGS.sub("", _PLACES.sub("", super().read(processor, tokens)))


FAMILY = Kosmos2()
