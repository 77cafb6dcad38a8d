"""Compiled graphs: read where they were compiled before, and compiled again where that cannot be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from captionlib.engines.openvino_cache import compile_graph

SETTINGS = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that were compiled."""
    graphs: list[str] = []

    class Core(openvino.Core):
        def compile_model(self, model: str, *options: Any) -> Any:
            graphs.append(model)
            return super().compile_model(model, *options)

    monkeypatch.setattr(openvino, "Core", Core)
    return graphs


def times(factor: float, path: Path) -> Path:
    """A graph that multiplies by a factor."""

    class Times(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values * factor

    torch.onnx.export(Times(), (torch.ones(2, 3),), str(path), dynamo=False)
    return path


def result(graph: Path, settings: Mapping[str, Any] = SETTINGS) -> np.ndarray:
    return np.asarray(compile_graph(graph, settings)(VALUES)[0])


@pytest.mark.usefixtures("cache")
def test_a_graph_is_compiled_once(tmp_path: Path, compilations: list[str]) -> None:
    graph = times(3.0, tmp_path / "graph.onnx")
    for _ in range(3):
        np.testing.assert_array_equal(result(graph), VALUES * 3)
    moved = graph.rename(tmp_path / "moved.onnx")
    np.testing.assert_array_equal(result(moved), VALUES * 3)
    assert compilations == [str(graph)]


@pytest.mark.usefixtures("cache")
def test_another_graph_or_other_settings_are_compiled_apart(tmp_path: Path, compilations: list[str]) -> None:
    graph = times(3.0, tmp_path / "graph.onnx")
    result(graph)
    result(graph, {**SETTINGS, "INFERENCE_NUM_THREADS": 2})
    times(5.0, graph)
    np.testing.assert_array_equal(result(graph), VALUES * 5)
    assert len(compilations) == 3


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_what_was_cut_is_compiled_again(tmp_path: Path, cache: Path, compilations: list[str], share: float) -> None:
    graph = times(3.0, tmp_path / "graph.onnx")
    result(graph)
    (kept,) = (file for file in cache.rglob("*") if file.is_file())
    whole = kept.read_bytes()
    kept.write_bytes(whole[: int(len(whole) * share)])
    for _ in range(2):
        np.testing.assert_array_equal(result(graph), VALUES * 3)
    assert len(compilations) == 2


def test_without_a_cache_it_is_compiled_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "file"))
    graph = times(3.0, tmp_path / "graph.onnx")
    for _ in range(2):
        np.testing.assert_array_equal(result(graph), VALUES * 3)
    assert len(compilations) == 2


@pytest.mark.usefixtures("cache")
def test_no_graph_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        compile_graph(tmp_path / "nothing.onnx", SETTINGS)
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    with pytest.raises(RuntimeError):
        compile_graph(tmp_path / "damaged.onnx", SETTINGS)
