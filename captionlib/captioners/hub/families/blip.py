"""BLIP (Li et al. 2022), such as Salesforce/blip-image-captioning-base. A prompt is the caption's beginning."""

from __future__ import annotations

from typing import Any

from captionlib.captioners.hub.families.base import Family


class Blip(Family):
    """Captions end in BERT's separator, which only the text decoder's settings say."""

    noun = "BLIP"

    def end_tokens(self, model: Any) -> set[int]:
        """`[SEP]`."""
        return {model.config.text_config.sep_token_id}


FAMILY = Blip()
