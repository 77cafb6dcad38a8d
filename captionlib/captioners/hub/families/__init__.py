"""How models of each architecture are asked for captions: `model_type` in config.json → the family.

To add one, write its module with a `FAMILY`, give it a row, and add it to the tests' tiny models.
"""

from __future__ import annotations

import importlib

from captionlib.captioners.hub.families.base import Family

_FOLDER = "captionlib.captioners.hub.families"
FAMILIES = {
    "blip": "blip",
    "git": "git",
    "vision-encoder-decoder": "vision_encoder_decoder",
    "florence2": "florence2",
    "kosmos-2": "kosmos2",
}
"""Their modules. Every other model is asked as a chat model, if it has a chat template."""


def family_of(model_type: str, *, has_chat_template: bool) -> Family | None:
    """The family of an architecture; None where nothing says how such a model is asked."""
    module = FAMILIES.get(model_type, "chat" if has_chat_template else None)
    if module is None:
        return None
    family: Family = importlib.import_module(f"{_FOLDER}.{module}").FAMILY
    return family
