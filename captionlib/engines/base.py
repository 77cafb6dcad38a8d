"""The contract of an engine: uint8 pixels → features.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class EncoderEngine(Protocol):
    """Runs an encoder."""

    name: str
    """Name for logs and records, such as `openvino 2026.4`."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Encode uint8 (B, S, S, 3) → features (B, N, D) float32, on the engine's device."""
