"""Image captioning models, training components and metrics; usable without Ray. `README.md` is the map.

>>> from captionlib import Predictor
>>> Predictor.from_checkpoint().caption(["photo.jpg"])[0][0].text    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from captionlib.version import __version__ as __version__

if TYPE_CHECKING:
    from captionlib.captioners.base import Caption
    from captionlib.captioners.predictor import Predictor
    from captionlib.config import SearchConfig
    from captionlib.datasets import read_dataset
    from captionlib.metrics import score_captions

__all__ = ["Caption", "Predictor", "SearchConfig", "read_dataset", "score_captions"]

_HOMES = {
    "Caption": "captionlib.captioners.base",
    "Predictor": "captionlib.captioners.predictor",
    "SearchConfig": "captionlib.config",
    "read_dataset": "captionlib.datasets",
    "score_captions": "captionlib.metrics",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: most jobs need a part of the library only, and PyTorch takes seconds.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'captionlib' has no attribute {name!r}")
