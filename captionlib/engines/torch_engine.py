"""Runs an encoder with PyTorch in float32, on any device.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from captionlib.config import Preprocessing
from captionlib.images.pixels import normalize


class TorchEngine:
    """An encoder in PyTorch in float32, moved to the device in place. See `CudaEngine` for CUDA."""

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self.name = f"torch {torch.__version__} on {device.type}"
        self.preprocessing, self.device = preprocessing, device
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        features: Tensor = self.encoder(normalize(batch, self.preprocessing))
        return features
