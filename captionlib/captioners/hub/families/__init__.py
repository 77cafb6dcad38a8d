"""The families of models, by the `model_type` in config.json: how each architecture is prompted for captions.

To add a family, write its module with a `FAMILY`, add a row, and add it to the tiny models of the tests.
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
"""Module of each family. Every other model is prompted as a chat model if it has a chat template."""


def family_of(model_type: str, *, has_chat_template: bool) -> Family | None:
    """Return the family of an architecture; None if it is unknown."""
    module = FAMILIES.get(model_type, "chat" if has_chat_template else None)
    if module is None:
        return None
    family: Family = importlib.import_module(f"{_FOLDER}.{module}").FAMILY
    return family
