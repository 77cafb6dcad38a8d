"""How an engine computes is known before it is built."""

from __future__ import annotations

import importlib.util

import pytest

from captionlib.config import EngineKind
from captionlib.engines.arithmetic import arithmetic


@pytest.mark.parametrize(
    ("kind", "gpu", "has_int8", "expected"),
    [
        ("auto", False, True, "8-bit integers in OpenVINO"),
        ("auto", False, False, "float32 in OpenVINO"),
        ("auto", True, True, "bfloat16 in PyTorch"),
        ("torch", True, True, "bfloat16 in PyTorch"),
        ("compiled", True, False, "bfloat16 in PyTorch"),
        ("int8", True, True, "8-bit integers in OpenVINO"),
        ("openvino", True, True, "float32 in OpenVINO"),
        ("torch", False, True, "float32 in PyTorch"),
    ],
)
def test_each_engine(kind: EngineKind, gpu: bool, has_int8: bool, expected: str) -> None:
    assert arithmetic(kind, gpu=gpu, has_int8=has_int8) == expected


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert arithmetic("auto", gpu=False, has_int8=True) == "float32 in PyTorch"
