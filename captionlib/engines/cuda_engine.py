"""Runs an encoder on a CUDA device: pinned staging, a separate stream, CUDA graphs or `torch.compile`.

The engine queues its work and returns: the search of one batch runs while the next batch is copied and encoded. The
current stream waits for the features on the device, so the host is not blocked.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import threading
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import Preprocessing
from captionlib.engines.cuda_graphs import Graphs
from captionlib.errors import CaptionlibWarning


class PixelNetwork(nn.Module):
    """An encoder with its normalisation, in one dtype: uint8 (B, S, S, 3) → float32 (B, N, D).

    Args:
        encoder: converted to the dtype in place.
        preprocessing: mean and standard deviation of the channels.
        dtype: dtype of the weights and layers. The normalisation is computed in float32.
    """

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.dtype = dtype
        self.encoder = encoder.to(dtype).to(memory_format=torch.channels_last)
        # Stored as buffers, because creating a tensor from Python numbers cannot be recorded in a CUDA graph.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        # A contiguous (B, S, S, 3) viewed as (B, 3, S, S) is already in channels-last order, so nothing is copied.
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (B, 3, S, S)
        features: Tensor = self.encoder(images.to(self.dtype))
        return features.float()


class CudaEngine:
    """An encoder in bfloat16 on a CUDA device. Threads may share an engine; their batches are processed in order.

    Args:
        encoder: moved to the device in place.
        preprocessing: conversion of pixels to the input of the encoder.
        device: a CUDA device.
        compiled: fuse operations with `torch.compile`, which delays the first batch by about half a minute. If this
            fails, a warning is given and the encoder runs uncompiled.
    """

    def __init__(
        self, encoder: nn.Module, preprocessing: Preprocessing, device: torch.device, *, compiled: bool = False
    ) -> None:
        self.name = f"torch {torch.__version__} on {device.type}" + (", compiled" if compiled else "")
        self.device, self.compiled = device, compiled
        self.network = PixelNetwork(encoder, preprocessing, torch.bfloat16).to(device).eval()
        self._stream = torch.cuda.Stream(device)
        self._lock = threading.Lock()
        self._largest = 0
        self._run = Graphs(torch.compile(self.network, dynamic=False) if compiled else self.network)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) → features (B, N, D) float32, on the device, ready for its current stream."""
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        with self._lock:
            self._largest = max(self._largest, len(batch))
            missing = padded_size(len(batch), self._largest, always=self.compiled) - len(batch)
            if missing:
                batch = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, missing))
            pinned = batch.pin_memory()
            with torch.cuda.stream(self._stream):
                features = self._encode(pinned.to(self.device, non_blocking=True))[: len(pixels)]
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            features.record_stream(current)  # keeps the allocator from reusing the memory before the search is done
        return features

    def _encode(self, batch: Tensor) -> Tensor:
        try:
            return self._run(batch)
        except RuntimeError as error:
            if not self.compiled or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"torch.compile failed, so the encoder runs without it: {reason}", CaptionlibWarning, stacklevel=4
            )
            self.compiled, self.name = False, self.name.removesuffix(", compiled")
            self._run = Graphs(self.network)
            return self._run(batch)


def padded_size(num_images: int, largest: int, *, always: bool) -> int:
    """Return the size to which a batch is padded, so that a recorded or compiled size can be reused.

    Args:
        num_images: size of the batch.
        largest: size of the largest batch so far.
        always: pad every batch, because each new size would be compiled; otherwise only batches that are more than
            half full.
    """
    return largest if always or 2 * num_images > largest else num_images
