"""Engines: the fastest correct way to run an encoder here; uint8 pixels → features.

On a CPU that is ONNX Runtime, about four times PyTorch; on CUDA, PyTorch in channels-last bfloat16. The
normalisation is inside, so that pixels travel as bytes until the last moment.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from captionlib.config import Preprocessing
from captionlib.transforms import normalize

EngineKind = Literal["auto", "onnx", "torch"]


class EncoderEngine(Protocol):
    """Runs an encoder."""

    name: str
    """For logs and records, such as `onnxruntime 1.20`."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) → features (B, N, D) float32, on the engine's device."""


class TorchEngine:
    """The encoder as PyTorch runs it: float32 on a CPU, bfloat16 on CUDA."""

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self.name = f"torch {torch.__version__} on {device.type}"
        self.preprocessing, self.device = preprocessing, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.encoder = encoder.to(device, self.dtype, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
        return self.encoder(normalize(batch, self.preprocessing).to(self.dtype)).float()


class OnnxEngine:
    """The encoder in ONNX Runtime, on a CPU.

    Args:
        path: what `export_onnx` wrote.
        num_threads: threads that share one batch.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        import onnxruntime

        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        # Threads that wait by spinning would take the CPU from those that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"pixels": np.ascontiguousarray(pixels)})[0])


def build_engine(
    encoder: nn.Module,
    preprocessing: Preprocessing,
    *,
    fingerprint: str,
    device: torch.device,
    num_threads: int,
    kind: EngineKind = "auto",
) -> EncoderEngine:
    """The engine for an encoder on a device.

    Args:
        fingerprint: names the exported graph in the cache; of the checkpoint that the encoder came from.
        num_threads: of an engine on the CPU.
        kind: `auto` takes ONNX Runtime on a CPU where it is installed, and warns where it is not.

    Raises:
        ModuleNotFoundError: `onnx` was asked for and is not installed; the message names the extra.
    """
    if kind == "torch" or (kind == "auto" and device.type != "cpu"):
        return TorchEngine(encoder, preprocessing, device)
    try:
        import onnxruntime  # noqa: F401

        path = export_onnx(encoder, preprocessing, fingerprint)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'captionlib[cpu]' makes encoders about four times faster"
        if kind == "onnx":
            raise ModuleNotFoundError(message) from error
        warnings.warn(message, stacklevel=2)
        return TorchEngine(encoder, preprocessing, device)
    return OnnxEngine(path, num_threads)


def export_onnx(encoder: nn.Module, preprocessing: Preprocessing, fingerprint: str) -> Path:
    """The encoder with its normalisation as an ONNX graph: pixels uint8 (B, S, S, 3) → features (B, N, D).

    Written once per machine into `$CAPTIONLIB_CACHE` (default: ~/.cache/captionlib) and found there again.
    """
    cache = Path(os.environ.get("CAPTIONLIB_CACHE", "~/.cache/captionlib")).expanduser() / "onnx"
    path = cache / f"{fingerprint}-torch{torch.__version__}.onnx"
    if path.exists():
        return path
    import onnxscript  # noqa: F401  torch's exporter needs it, and says so less clearly

    cache.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, preprocessing.size, preprocessing.size, 3, dtype=torch.uint8)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(dir=cache) as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draft = Path(directory) / "encoder.onnx"
            torch.onnx.export(
                _FromPixels(encoder, preprocessing).eval(),
                (example,),
                str(draft),
                input_names=["pixels"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            draft.rename(path)  # whole or not at all, whoever else exports the same
    finally:
        exporter_log.setLevel(level)
    return path


class _FromPixels(nn.Module):
    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder(normalize(pixels, self.preprocessing))
