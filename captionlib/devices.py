"""Copies between the host and a CUDA device that do not make the host wait.

A copy from ordinary (pageable) memory waits for everything that was queued on the device before it. A copy from pinned
memory is queued like a kernel.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. Towards CUDA the copy goes through pinned memory, and the host does not wait for it."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.lru_cache(maxsize=64)
def constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers as an int64 tensor (len(values),) that is copied to each device once. Do not write to it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
