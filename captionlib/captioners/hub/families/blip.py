"""BLIP (Li et al. 2022), such as Salesforce/blip-image-captioning-base. The prompt is the beginning of the caption."""

from __future__ import annotations

from typing import Any

from captionlib.captioners.hub.families.base import Family


class Blip(Family):
    """Captions end with BERT's separator, which only the settings of the text decoder state."""

    noun = "BLIP"

    def end_tokens(self, model: Any) -> set[int]:
        """Return the id of `[SEP]`."""
        return {model.config.text_config.sep_token_id}


FAMILY = Blip()
