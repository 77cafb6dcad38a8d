"""States how an engine computes, before it is built: captions differ between 8-bit integers, bfloat16 and float32."""

from __future__ import annotations

import importlib.util

from captionlib.config import EngineKind


def arithmetic(kind: EngineKind, *, gpu: bool, has_int8: bool = False) -> str:
    """Return the arithmetic of the engine that `captionlib.engines.build.build_engine` builds.

    Args:
        gpu: whether it runs on a machine with a CUDA device.
        has_int8: whether the checkpoint has an encoder in 8-bit integers.
    """
    if gpu and kind in ("auto", "torch", "compiled"):
        return "bfloat16 in PyTorch"
    has_openvino = importlib.util.find_spec("openvino") is not None
    if kind == "int8" or (kind == "auto" and has_int8 and has_openvino):
        return "8-bit integers in OpenVINO"
    if kind == "torch" or not has_openvino:
        return "float32 in PyTorch"
    return "float32 in OpenVINO"
