"""Writes an encoder and its normalisation as an ONNX graph, which OpenVINO and the quantizer read.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from captionlib.config import Preprocessing
from captionlib.encoders import Encoder
from captionlib.errors import UserError
from captionlib.images.pixels import normalize

_OPSET = 18
_exporting = threading.Lock()


class ExportError(UserError):
    """An encoder contains operations that ONNX or its exporter does not support."""


def export_onnx(encoder: Encoder, preprocessing: Preprocessing, path: Path) -> None:
    """Export an encoder with its normalisation as an ONNX graph: pixels uint8 (B, S, S, 3) → features (B, N, D).

    The graph is traced: this takes one second instead of ten with torch's newer exporter, and the graphs are equally
    fast.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ExportError: the encoder cannot be expressed in ONNX.
    """
    try:
        import onnx  # noqa: F401  the exporter needs it, and says so at its end
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("onnx is not installed: pip install 'captionlib[cpu]'") from error
    side = preprocessing.size
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    module = _EncoderOnPixels(encoder, preprocessing).eval()
    try:
        with _exporter_settings():
            torch.onnx.export(
                module,
                (example,),
                str(path),
                input_names=["pixels"],
                output_names=["features"],
                dynamic_axes={"pixels": {0: "batch"}, "features": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{encoder.config.name} cannot be exported to ONNX: {reason}") from error


@contextlib.contextmanager
def _exporter_settings() -> Iterator[None]:
    """Allow one export at a time, because the exporter's state and these settings are global."""
    # Otherwise PyTorch prints the graph of an encoder that cannot be exported, which is thousands of lines long.
    silent = mock.patch("torch._C._jit_onnx_log", create=True)
    with _exporting, torch.no_grad(), silent, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of deprecation and of shapes that become constants are expected
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no such operation
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


class _EncoderOnPixels(nn.Module):
    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder(normalize(pixels, self.preprocessing))
        return features
