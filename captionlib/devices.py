"""Copies tensors between host and CUDA device without blocking the host.

A copy from ordinary (pageable) memory waits for all work queued on the device. A copy from pinned memory is queued like
a kernel.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. Towards CUDA the copy uses pinned memory and does not block the host."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Return whole numbers as an int64 tensor (len(values),), copied to each device once. It must not be modified."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
