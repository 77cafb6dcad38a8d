"""Quantises encoders to 8-bit integers, which a CPU runs about twice as fast.

Weights become int8 with one scale per output channel. Activations become uint8 between the smallest and the largest
value that occurred on sample photos (Jacob et al. 2018, arXiv:1712.05877, sections 2 and 3). Features change by some
percent, and with them some captions; `jobs.caption` and `jobs.evaluate` measure the effect.

Shapes: B images, S side of the square input.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captionlib.config import Preprocessing
from captionlib.encoders import Encoder
from captionlib.engines.onnx_export import export_onnx
from captionlib.engines.openvino import OpenVinoEngine
from captionlib.engines.torch_engine import TorchEngine

# Convolutions and the operations between them, so that results are not converted to floats in between.
_OPERATIONS = ["Conv", "Add", "Clip", "Relu"]
_FLOAT_CONVOLUTIONS = 3
"""Number of convolutions at the input that stay in float. They process the image itself, and rounding it causes most of
the loss (features of EfficientNet-Lite2: mean cosine 0.987 without this, 0.992 with it), for a tenth of the time."""
_BATCH = 16


def quantize_encoder(encoder: Encoder, preprocessing: Preprocessing, pixels: Sequence[np.ndarray], path: Path) -> None:
    """Write an encoder with its normalisation as an ONNX graph of 8-bit integers.

    Args:
        pixels: sample photos, uint8 (S, S, 3) each, similar to those that will be captioned; a hundred are enough.
        path: destination of the graph.

    Raises:
        ModuleNotFoundError: a package is not installed; the message names the extra.
        captionlib.engines.onnx_export.ExportError: the encoder cannot be expressed in ONNX.
        ValueError: there are no photos.
    """
    if not len(pixels):
        raise ValueError("the ranges of activations are measured on photos, and none are given")
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("onnxruntime is not installed: pip install 'captionlib[quantize]'") from error
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        exported, folded = Path(folder) / "exported.onnx", Path(folder) / "folded.onnx"
        export_onnx(encoder, preprocessing, exported)
        quant_pre_process(str(exported), str(folded), skip_symbolic_shape=True)  # folds batch norms into convolutions
        quantize_static(
            str(folded),
            str(path),
            _Calibration(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATIONS,
            nodes_to_exclude=_beginning(folded),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def similarity(encoder: Encoder, preprocessing: Preprocessing, graph: Path, pixels: Sequence[np.ndarray]) -> float:
    """Return the mean cosine between the features of an encoder in float and of its graph in integers; 1 is identical.

    Args:
        pixels: uint8 (S, S, 3) each.
    """
    exact = TorchEngine(encoder, preprocessing, torch.device("cpu"))
    integer = OpenVinoEngine(graph, torch.get_num_threads())
    cosines = [
        torch.cosine_similarity(exact(batch).flatten(1), integer(batch).flatten(1), dim=1) for batch in _batches(pixels)
    ]
    return float(torch.cat(cosines).mean())


def _beginning(graph: Path) -> list[str]:
    """Return the names of the first nodes of a graph, up to the last convolution that stays in float."""
    import onnx

    nodes = [node for node in onnx.load(str(graph)).graph.node if node.op_type in _OPERATIONS]  # in topological order
    convolutions = [number for number, node in enumerate(nodes) if node.op_type == "Conv"]
    if len(convolutions) <= _FLOAT_CONVOLUTIONS:
        return []
    return [node.name for node in nodes[: convolutions[_FLOAT_CONVOLUTIONS - 1] + 1]]


class _Calibration:
    """Provides ONNX Runtime with batches for calibration."""

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self._batches = _batches(pixels)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"pixels": batch}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.get_next, None)


def _batches(pixels: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """uint8 (B, S, S, 3)."""
    return (np.stack(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH))


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress advice of ONNX Runtime's quantizer that does not apply here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
