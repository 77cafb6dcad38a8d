"""Encoders in 8-bit integers: a float encoder and photos to measure it on → a graph that a CPU runs much faster.

Weights become int8, a scale for each output channel, activations uint8 between the least and the largest value that
the photos led to (Jacob et al. 2018, arXiv:1712.05877, sections 2 and 3). Features differ by some percent then, so that
some captions do; what that is worth is measured with `jobs.caption` and `jobs.evaluate`.

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

# Convolutions, and what stands between them, so that their results need not become floats in between.
_OPERATIONS = ["Conv", "Add", "Clip", "Relu"]
_FLOAT_CONVOLUTIONS = 3
"""As many at the beginning stay in float: they see the picture itself, and rounding it is most of what integers lose
(features of EfficientNet-Lite2: a mean cosine of 0.987 without this, 0.992 with it), for a tenth of the time."""
_BATCH = 16


def quantize_encoder(encoder: Encoder, preprocessing: Preprocessing, pixels: Sequence[np.ndarray], path: Path) -> None:
    """Write an encoder as an ONNX graph of 8-bit integers, with its normalisation inside as in `export_onnx`.

    Args:
        pixels: of photos such as it will be shown, uint8 (S, S, 3) each; a hundred are enough.
        path: of the graph.

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
        quant_pre_process(str(exported), str(folded), skip_symbolic_shape=True)  # batch norms go into convolutions
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
    """Mean cosine between an encoder's features in float and those of its graph in integers; 1 is the same.

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
    """Names of the first nodes of a graph, as far as the last of the convolutions that stay in float."""
    import onnx

    nodes = [node for node in onnx.load(str(graph)).graph.node if node.op_type in _OPERATIONS]  # in order
    convolutions = [number for number, node in enumerate(nodes) if node.op_type == "Conv"]
    if len(convolutions) <= _FLOAT_CONVOLUTIONS:
        return []
    return [node.name for node in nodes[: convolutions[_FLOAT_CONVOLUTIONS - 1] + 1]]


class _Calibration:
    """What ONNX Runtime measures ranges on; it asks until there is nothing left."""

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
    """ONNX Runtime's quantizer advises on what is done here already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
