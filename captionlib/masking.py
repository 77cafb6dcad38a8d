"""Masks secrets in everything that others than the job may read."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    # Parameters of AWS, Google and Azure signatures, and common names of tokens; `key` only with a long value.
    r"(?i)(?<=[?&])([a-z_-]*(?:signature|credential|token|secret|password|passwd|pwd|authorization|api[_-]?key|"
    r"access[_-]?key(?:id)?|accessid|session[_-]?id)|sig|auth|key(?==[^&#\s]{20}))=[^&#\s'\"]+"
)
_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")
MASK = "***"


def masked(text: str) -> str:
    """Mask the secrets of all URLs in a text: `user:password@`, and query parameters that sign or authorise.

    Everything that others than the job may read goes through this function: rows, exports, reports, logs, error
    messages, tags of metrics.
    """
    if "://" not in text:
        return text
    return _SECRETS.sub(rf"\1={MASK}", _USER.sub(f"{MASK}@", text))
