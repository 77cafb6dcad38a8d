"""Turns the text of a model into a caption."""

from __future__ import annotations

import re

# A full stop after a single letter or a title does not end a sentence.
_SENTENCE_END = re.compile(r"""(?<!\b[A-Za-z])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?]+["')\]”’]*(?=\s|$)""")


def clean(text: str, *, first_sentence: bool = False) -> str:
    """Remove line breaks and repeated spaces; optionally keep only the first sentence."""
    text = " ".join(text.split())
    end = _SENTENCE_END.search(text) if first_sentence else None
    return text if end is None else text[: end.end()]
