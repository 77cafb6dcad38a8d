"""Engines: the fastest correct way to run an encoder here; uint8 pixels → features.

On a CPU that is ONNX Runtime, about four times PyTorch; on CUDA, PyTorch in channels-last bfloat16. The
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
from typing import Literal, Protocol
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from captionlib.cache import CacheError, cache_folder, digest, publish
from captionlib.config import Preprocessing, to_dict
from captionlib.encoders import Encoder
from captionlib.transforms import normalize

EngineKind = Literal["auto", "onnx", "torch"]

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
    """For logs and records, such as `onnxruntime 1.20`."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) → features (B, N, D) float32, on the engine's device."""


class TorchEngine:
    """The encoder as PyTorch runs it: float32 on a CPU, bfloat16 on CUDA. The encoder is moved, not copied."""

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing, device: torch.device) -> None:
        self.name = f"torch {torch.__version__} on {device.type}"
        self.preprocessing, self.device = preprocessing, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.encoder = encoder.to(device, self.dtype).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        features: Tensor = self.encoder(normalize(batch, self.preprocessing).to(self.dtype))
        return features.float()


class OnnxEngine:
    """The encoder in ONNX Runtime, on a CPU.

    Args:
        graph: what `export_onnx` wrote.
        num_threads: threads that share one batch.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """

    def __init__(self, graph: Path, num_threads: int) -> None:
        import onnxruntime

        self.name = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised, that is enough
        # Threads that wait by spinning would take the CPU from those that decode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"pixels": np.ascontiguousarray(pixels)})[0])


def build_engine(
    encoder: Encoder,
    preprocessing: Preprocessing,
    *,
    fingerprint: str,
    device: torch.device,
    num_threads: int,
    kind: EngineKind = "auto",
) -> EncoderEngine:
    """The engine for an encoder on a device.

    Args:
        fingerprint: stands for the encoder's weights in the name of the cached graph.
        num_threads: of ONNX Runtime. PyTorch has one number of threads for the whole process.
        kind: `auto` takes ONNX Runtime on a CPU, and PyTorch with a warning where that does not work.

    Raises:
        ModuleNotFoundError: `onnx` was asked for and is not installed; the message names the extra.
        ExportError: `onnx` was asked for, and this encoder cannot be exported.
    """
    if kind == "torch" or (kind == "auto" and device.type != "cpu"):
        return TorchEngine(encoder, preprocessing, device)
    try:
        return _onnx_engine(encoder, preprocessing, fingerprint, num_threads)
    except (ModuleNotFoundError, ExportError) as error:
        if kind == "onnx":
            raise
        warnings.warn(f"PyTorch runs the encoder, at about a quarter of ONNX Runtime's speed: {error}", stacklevel=2)
        return TorchEngine(encoder, preprocessing, device)


def _onnx_engine(encoder: Encoder, preprocessing: Preprocessing, fingerprint: str, num_threads: int) -> OnnxEngine:
    """From the cached graph; where there is none, or a damaged one, export it first, once per machine."""
    runtime_errors = _onnxruntime_errors()
    parts = [fingerprint, to_dict(encoder.config), to_dict(preprocessing), torch.__version__, _GRAPH_VERSION]
    folder = cache_folder("onnx") / digest(*parts)
    try:
        return OnnxEngine(folder / _GRAPH, num_threads)
    except runtime_errors:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        try:
            draft = stack.enter_context(publish(folder))
        except CacheError:  # it costs the export each time, and nothing else
            draft = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export_onnx(encoder, preprocessing, draft / _GRAPH)
        try:
            engine = OnnxEngine(draft / _GRAPH, num_threads)
            equal = _computes_the_same(engine, encoder, preprocessing)
        except runtime_errors as error:
            raise ExportError(f"ONNX Runtime cannot run {encoder.config.name}: {error}") from error
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


def _computes_the_same(engine: OnnxEngine, encoder: Encoder, preprocessing: Preprocessing) -> bool:
    """Whether a graph agrees with its encoder. Tracing writes down what it saw, so this is another batch size."""
    side = preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    expected = TorchEngine(encoder, preprocessing, torch.device("cpu"))(pixels)
    found = engine(pixels)
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What a missing, damaged or unknown graph raises; these classes have no base of their own.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("onnxruntime is not installed: pip install 'captionlib[cpu]'") from error
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


class _FromPixels(nn.Module):
    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder(normalize(pixels, self.preprocessing))
        return features
