"""Which batches are recorded, and what happens to a recording that is no good. Recording itself needs a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captionlib.engines.cuda_graphs import MAX_GRAPHS, SEEN_BEFORE, Graphs, Network


class Recorder:
    """Notes what is recorded and replayed; `change` is what a replay does to the output."""

    def __init__(self, change: Callable[[Tensor], Tensor] = torch.clone) -> None:
        self.recorded: list[int] = []
        self.replayed: list[int] = []
        self.change = change

    def __call__(self, network: Network, example: Tensor) -> Network:
        self.recorded.append(len(example))

        def replay(batch: Tensor) -> Tensor:
            self.replayed.append(len(batch))
            return self.change(network(batch))

        return replay


def double(batch: Tensor) -> Tensor:
    return 2 * batch


def test_a_size_that_comes_again_is_recorded_and_replayed() -> None:
    recorder = Recorder()
    graphs = Graphs(double, recorder)
    for size in (8, 3, 8, 8, 5, 8):
        batch = torch.randn(size, 4)
        assert torch.equal(graphs(batch), 2 * batch)
    assert recorder.recorded == [8]
    assert recorder.replayed == [8, 8, 8]  # once to see that it is right


def test_only_so_many_sizes_are_recorded() -> None:
    recorder = Recorder()
    graphs = Graphs(double, recorder)
    for _ in range(SEEN_BEFORE + 1):
        for size in range(1, MAX_GRAPHS + 3):
            graphs(torch.ones(size, 1))
    assert recorder.recorded == list(range(1, MAX_GRAPHS + 1))


def test_a_recording_that_computes_something_else_is_not_used() -> None:
    recorder = Recorder(change=lambda output: output + 1)
    graphs = Graphs(double, recorder)
    with pytest.warns(UserWarning, match="CUDA graph replay differs"):
        outputs = [graphs(torch.ones(2, 1)) for _ in range(5)]
    assert all(torch.equal(output, torch.full((2, 1), 2.0)) for output in outputs)
    assert recorder.replayed == [2]


def test_a_recording_of_no_numbers_is_not_used() -> None:
    graphs = Graphs(double, Recorder(change=lambda output: output * torch.nan))
    with pytest.warns(UserWarning, match="CUDA graph replay differs"):
        outputs = [graphs(torch.ones(2, 1)) for _ in range(5)]
    assert all(torch.equal(output, torch.full((2, 1), 2.0)) for output in outputs)


def test_a_network_that_cannot_be_recorded_runs_as_it_is() -> None:
    def refuse(network: Network, example: Tensor) -> Network:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(double, refuse)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing") as told:
        outputs = [graphs(torch.ones(2, 1)) for _ in range(5)]
    assert all(torch.equal(output, torch.full((2, 1), 2.0)) for output in outputs)
    assert len(told) == 1
