"""Kosmos-2 (Peng et al. 2023), such as microsoft/kosmos-2-patch14-224. A prompt is the caption's beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from captionlib.captioners.hub.families.base import Family

_PLACES = re.compile(r"<object>.*?</object>|<patch_index_\d+>")
_TAGS = re.compile(r"</?(?:grounding|phrase|object|doc|chunk|line|image|delimiter_of_multi_objects/?)>")


class Kosmos2(Family):
    """Phrases may come in tags with places behind them: the words stay, tags and places go."""

    noun = "Kosmos-2"
    default_prompt = "An image of"
    max_tokens = 64

    def read(self, processor: Any, tokens: Sequence[int]) -> str:
        """See `Family`."""
        return _TAGS.sub("", _PLACES.sub("", super().read(processor, tokens)))


FAMILY = Kosmos2()
