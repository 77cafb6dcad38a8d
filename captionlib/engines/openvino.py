"""Runs an encoder with OpenVINO on a CPU.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captionlib.engines.openvino_cache import compile_graph, import_openvino


class OpenVinoEngine:
    """An encoder in OpenVINO on a CPU. Concurrent calls are serialised.

    Args:
        graph: file written by `export_onnx` or by `captionlib.engines.quantization.quantize_encoder`.
        num_threads: threads that share one batch.

    Raises:
        ModuleNotFoundError: openvino is not installed.
        OSError: the graph cannot be read.
        RuntimeError: the graph is damaged, or contains an operation that OpenVINO does not support.
    """

    def __init__(self, graph: Path, num_threads: int) -> None:
        self.name = f"openvino {import_openvino().__version__.partition('-')[0]}"
        settings = {
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch
            "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 on CPUs that support it
            "ENABLE_CPU_PINNING": False,  # pinning would put several processes on the same CPUs
        }
        self._request = compile_graph(graph, settings).create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, pixels: np.ndarray) -> Tensor:
        with self._lock:
            features = self._request.infer([np.ascontiguousarray(pixels)], share_inputs=True)[0]
            return torch.from_numpy(features.copy())
