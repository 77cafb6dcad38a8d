"""Text as a model leaves it → a caption."""

from __future__ import annotations

import re

# A full stop that ends no sentence stands behind one letter or a title.
_SENTENCE_END = re.compile(r"""(?<!\b[A-Za-z])(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?]+["')\]”’]*(?=\s|$)""")


def clean(text: str, *, first_sentence: bool = False) -> str:
    """One line, without spaces around it or twice in it; only the first sentence, if that is wanted."""
    text = " ".join(text.split())
    end = _SENTENCE_END.search(text) if first_sentence else None
    return text if end is None else text[: end.end()]
