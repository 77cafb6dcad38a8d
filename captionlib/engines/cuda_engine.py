"""Runs an encoder on a CUDA device: pinned staging, a stream of its own, CUDA graphs or `torch.compile`.

The engine queues its work and returns: the search of one batch runs on the device while the next batch is copied and
encoded. Whoever uses the features on the current stream waits for them on the device, not on the host.

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


class PixelNetwork(nn.Module):
    """An encoder with its normalisation, in one dtype: uint8 (B, S, S, 3) → float32 (B, N, D).

    Args:
        encoder: is moved to the dtype, not copied.
        preprocessing: mean and standard deviation of the channels.
        dtype: of the encoder's weights and layers. The normalisation is computed in float32.
    """

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.dtype = dtype
        self.encoder = encoder.to(dtype).to(memory_format=torch.channels_last)
        # Buffers: a tensor that is made from Python numbers within the network could not be recorded in a graph.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        # A contiguous (B, S, S, 3), seen as (B, 3, S, S), lies in channels-last order: nothing is copied.
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std  # (B, 3, S, S)
        features: Tensor = self.encoder(images.to(self.dtype))
        return features.float()


class CudaEngine:
    """The encoder in bfloat16 on a CUDA device. May be called from several threads; their batches queue up in order.

    Args:
        encoder: is moved to the device, not copied.
        preprocessing: how pixels become the encoder's input.
        device: a CUDA device.
        compiled: fuse the encoder's operations with `torch.compile`. The first batch waits about half a minute for it.
            Where it fails, the encoder runs without it, with a warning.
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
            features.record_stream(current)  # its memory is not given to another tensor before the search is done
        return features

    def _encode(self, batch: Tensor) -> Tensor:
        try:
            return self._run(batch)
        except RuntimeError as error:
            if not self.compiled or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"torch.compile failed, so the encoder runs without it: {reason}", stacklevel=4)
            self.compiled, self.name = False, self.name.removesuffix(", compiled")
            self._run = Graphs(self.network)
            return self._run(batch)


def padded_size(num_images: int, largest: int, *, always: bool) -> int:
    """How many images a batch is filled up to, so that it has a size that was recorded or compiled before.

    Args:
        num_images: in the batch.
        largest: the largest batch so far.
        always: fill up every batch, since each new size would be compiled; else only those more than half full.
    """
    return largest if always or 2 * num_images > largest else num_images
