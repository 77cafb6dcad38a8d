"""Tells paths on a disk from URLs."""

from __future__ import annotations


def is_local(path: str) -> bool:
    """Whether a path is on a local or mounted disk rather than a URL."""
    return "://" not in path or path.startswith("/")
