"""Engines: the fastest correct way to run an encoder here; uint8 pixels → features.

On a CPU that is OpenVINO, which folds what PyTorch runs apart; on CUDA, PyTorch in channels-last bfloat16. The
normalisation is inside, so that pixels travel as bytes until the last moment.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from captionlib.cache import CacheError, cache_folder, digest, publish
from captionlib.compiled_graphs import compile_graph, import_openvino
from captionlib.config import EngineKind, Preprocessing, to_dict
from captionlib.cuda_engine import CudaEngine
from captionlib.encoders import Encoder
from captionlib.transforms import normalize

_GRAPH = "encoder.onnx"
# Part of the cache's key: a graph that an earlier version of this file exported is not used.
_GRAPH_VERSION = 1
_OPSET = 18
# Largest difference between a graph's features and PyTorch's, as a share of the largest feature.
_TOLERANCE = 1e-3
_exporting = threading.Lock()


class ExportError(ValueError):
    """An encoder has operations that ONNX or its exporter does not know."""


class EncoderEngine(Protocol):
    """Runs an encoder."""

    name: str
    """For logs and records, such as `openvino 2026.4`."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) → features (B, N, D) float32, on the engine's device."""


class TorchEngine:
    """The encoder as PyTorch runs it, in float32. It is moved, not copied. See `CudaEngine` for CUDA."""

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self.name = f"torch {torch.__version__} on {device.type}"
        self.preprocessing, self.device = preprocessing, device
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        features: Tensor = self.encoder(normalize(batch, self.preprocessing))
        return features


class OpenVinoEngine:
    """The encoder in OpenVINO, on a CPU. Calls from several threads wait for each other.

    Args:
        graph: what `export_onnx` wrote, or `captionlib.quantization.quantize_encoder`.
        num_threads: threads that share one batch.

    Raises:
        ModuleNotFoundError: openvino is not installed.
        OSError: the graph cannot be read.
        RuntimeError: it is damaged, or OpenVINO does not know what is in it.
    """

    def __init__(self, graph: Path, num_threads: int) -> None:
        self.name = f"openvino {import_openvino().__version__.partition('-')[0]}"
        settings = {
            "INFERENCE_NUM_THREADS": num_threads,
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same CPUs
        }
        self._request = compile_graph(graph, settings).create_infer_request()
        self._lock = threading.Lock()

    def __call__(self, pixels: np.ndarray) -> Tensor:
        with self._lock:
            features = self._request.infer([np.ascontiguousarray(pixels)], share_inputs=True)[0]
            return torch.from_numpy(features.copy())


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
    """The engine for an encoder on a device.

    Args:
        fingerprint: stands for the encoder's weights in the name of the cached graph.
        num_threads: of OpenVINO. PyTorch has one number of threads for the whole process.
        kind: `auto` takes OpenVINO on a CPU, with `int8_graph` if there is one, and PyTorch with a warning where
            that does not work.
        int8_graph: the encoder in 8-bit integers.

    Raises:
        ModuleNotFoundError: OpenVINO was asked for and is not installed; the message names the extra.
        ExportError: OpenVINO was asked for, and cannot run this encoder.
        ValueError: `int8` was asked for, and there is no such graph; or `compiled`, and there is no CUDA device.
    """
    if kind == "compiled" and device.type != "cuda":
        raise ValueError("the engine `compiled` is for CUDA, and there is no such device here: leave out --engine")
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
        warnings.warn(f"PyTorch runs the encoder, at a fraction of OpenVINO's speed: {error}", stacklevel=2)
        return TorchEngine(encoder, preprocessing, device)


def _int8_engine(graph: Path | None, num_threads: int) -> OpenVinoEngine:
    if graph is None:
        raise ValueError("this checkpoint has no encoder in 8-bit integers: python -m jobs.quantize makes one that has")
    try:
        engine = OpenVinoEngine(graph, num_threads)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run {graph}: {_last_line(error)}") from error
    engine.name += " in 8-bit integers"
    return engine


def _openvino_engine(
    encoder: Encoder, preprocessing: Preprocessing, fingerprint: str, num_threads: int
) -> OpenVinoEngine:
    """From the cached graph; where there is none, or a damaged one, export it first, once per machine."""
    parts = [fingerprint, to_dict(encoder.config), to_dict(preprocessing), torch.__version__, _GRAPH_VERSION]
    folder = cache_folder("onnx") / digest(*parts)
    try:
        return OpenVinoEngine(folder / _GRAPH, num_threads)
    except (OSError, RuntimeError):  # not there, or damaged
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        try:
            draft = stack.enter_context(publish(folder))
        except CacheError:  # it costs the export each time, and nothing else
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


def export_onnx(encoder: Encoder, preprocessing: Preprocessing, path: Path) -> None:
    """Write the encoder with its normalisation as an ONNX graph: pixels uint8 (B, S, S, 3) → features (B, N, D).

    By tracing: it takes a second where torch's newer exporter takes ten, for a graph of the same speed.

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
    module = _FromPixels(encoder, preprocessing).eval()
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
    """One export at a time: the exporter's state is global, and so are these settings."""
    # An encoder that cannot be exported would have its graph printed, thousands of lines.
    silent = mock.patch("torch._C._jit_onnx_log", create=True)
    with _exporting, torch.no_grad(), silent, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of shapes that become constants
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # an operation that ONNX has not
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _computes_the_same(engine: OpenVinoEngine, encoder: Encoder, preprocessing: Preprocessing) -> bool:
    """Whether a graph agrees with its encoder. Tracing writes down what it saw, so this is another batch size."""
    side = preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    expected = TorchEngine(encoder, preprocessing, torch.device("cpu"))(pixels)
    found = engine(pixels)
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _last_line(error: RuntimeError) -> str:
    """What OpenVINO says; before it, where in its source that was."""
    return str(error).strip().rpartition("\n")[2]


class _FromPixels(nn.Module):
    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder(normalize(pixels, self.preprocessing))
        return features
