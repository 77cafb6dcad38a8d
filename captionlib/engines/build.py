"""Chooses and builds the engine that runs an encoder on a device.

On a CPU this is OpenVINO, which fuses operations that PyTorch runs separately; on CUDA it is PyTorch in channels-last
bfloat16. The normalisation is part of the engine, so that pixels are transferred as bytes.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from captionlib.cache import CacheError, cache_folder, digest, publish
from captionlib.config import EngineKind, Preprocessing, to_dict
from captionlib.encoders import Encoder
from captionlib.engines.base import EncoderEngine
from captionlib.engines.cuda_engine import CudaEngine
from captionlib.engines.onnx_export import ExportError, export_onnx
from captionlib.engines.openvino import OpenVinoEngine
from captionlib.engines.torch_engine import TorchEngine
from captionlib.errors import CaptionlibWarning, UserError

_GRAPH = "encoder.onnx"
# Part of the cache key, so that graphs exported by earlier versions of this file are not used.
_GRAPH_VERSION = 1
# Largest difference between a graph's features and PyTorch's, as a share of the largest feature.
_TOLERANCE = 1e-3


def build_engine(
    encoder: Encoder,
    preprocessing: Preprocessing,
    *,
    fingerprint: str,
    device: torch.device,
    num_threads: int,
    kind: EngineKind = "auto",
    int8_graph: Path | None = None,
) -> EncoderEngine:
    """Build the engine for an encoder on a device.

    Args:
        fingerprint: identifies the weights of the encoder in the name of the cached graph.
        num_threads: threads of OpenVINO. PyTorch has one number of threads for the whole process.
        kind: `auto` uses OpenVINO on a CPU, with `int8_graph` if there is one; if that fails, PyTorch with a warning.
        int8_graph: the encoder in 8-bit integers.

    Raises:
        ModuleNotFoundError: OpenVINO was requested and is not installed; the message names the extra.
        ExportError: OpenVINO was requested and cannot run this encoder.
        UserError: `int8` was requested without such a graph, or `compiled` without a CUDA device.
    """
    if kind == "compiled" and device.type != "cuda":
        raise UserError("the engine `compiled` is for CUDA, and there is no such device here: leave out --engine")
    if device.type == "cuda" and kind in ("auto", "torch", "compiled"):
        return CudaEngine(encoder, preprocessing, device, compiled=kind == "compiled")
    if kind == "torch" or (kind == "auto" and device.type != "cpu"):
        return TorchEngine(encoder, preprocessing, device)
    try:
        if kind == "int8" or (kind == "auto" and int8_graph is not None):
            return _int8_engine(int8_graph, num_threads)
        return _openvino_engine(encoder, preprocessing, fingerprint, num_threads)
    except (ModuleNotFoundError, ExportError) as error:
        if kind != "auto":
            raise
        warnings.warn(
            f"PyTorch runs the encoder, at a fraction of OpenVINO's speed: {error}", CaptionlibWarning, stacklevel=2
        )
        return TorchEngine(encoder, preprocessing, device)


def _int8_engine(graph: Path | None, num_threads: int) -> OpenVinoEngine:
    if graph is None:
        raise UserError("this checkpoint has no encoder in 8-bit integers: python -m jobs.quantize makes one that has")
    try:
        engine = OpenVinoEngine(graph, num_threads)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run {graph}: {_last_line(error)}") from error
    engine.name += " in 8-bit integers"
    return engine


def _openvino_engine(
    encoder: Encoder, preprocessing: Preprocessing, fingerprint: str, num_threads: int
) -> OpenVinoEngine:
    """Build the engine from the cached graph; export the graph first if it is missing or damaged."""
    parts = [fingerprint, to_dict(encoder.config), to_dict(preprocessing), torch.__version__, _GRAPH_VERSION]
    folder = cache_folder("onnx") / digest(*parts)
    try:
        return OpenVinoEngine(folder / _GRAPH, num_threads)
    except (OSError, RuntimeError):  # the cached graph is missing or damaged
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        try:
            draft = stack.enter_context(publish(folder))
        except CacheError:  # without a cache the graph is exported each time
            draft = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export_onnx(encoder, preprocessing, draft / _GRAPH)
        try:
            engine = OpenVinoEngine(draft / _GRAPH, num_threads)
            equal = _computes_the_same(engine, encoder, preprocessing)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot run {encoder.config.name}: {_last_line(error)}") from error
        if not equal:
            raise ExportError(f"the ONNX graph of {encoder.config.name} does not compute what PyTorch does")
    return engine


def _computes_the_same(engine: OpenVinoEngine, encoder: Encoder, preprocessing: Preprocessing) -> bool:
    """Whether a graph agrees with its encoder, checked on another batch size than the one that was traced."""
    side = preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    expected = TorchEngine(encoder, preprocessing, torch.device("cpu"))(pixels)
    found = engine(pixels)
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _last_line(error: RuntimeError) -> str:
    """Return the last line of OpenVINO's message; the lines before it are positions in its source."""
    return str(error).strip().rpartition("\n")[2]
