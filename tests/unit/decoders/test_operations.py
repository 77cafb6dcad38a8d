"""How many operations a word costs in training: a GPU executes most of them faster than Python can launch them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from captionlib.decoders import Decoder
from tests.unit.decoders.captions import features, pad, small_decoder

# Of a forward and of a backward pass: a few more than were measured on a CPU, as versions of PyTorch differ.
MOST = {
    "lstm_init": (12, 19),
    "lstm_attention-additive": (27, 54),
    "lstm_adaptive-additive": (47, 86),
}


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy something; views cost a GPU nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(decoder: Decoder, num_words: int) -> tuple[int, int]:
    """Of a step of training with captions of this length: forward and backward."""
    decoder.zero_grad()
    with Operations() as forward:
        output = decoder(features(), pad([[[5] * num_words] * 2] * 3))
        loss = F.cross_entropy(output.logits, output.targets)
    with Operations() as backward:
        loss.backward()
    return forward.counts.total(), backward.counts.total()


@pytest.mark.parametrize("name", MOST)
def test_operations_per_word(name: str) -> None:
    decoder = small_decoder(name).train()
    few, many = operations(decoder, 4), operations(decoder, 14)
    per_word = [(of_many - of_few) / 10 for of_few, of_many in zip(few, many, strict=True)]
    print(f"{name}: {per_word[0]:g} forward, {per_word[1]:g} backward")
    assert per_word[0] <= MOST[name][0]
    assert per_word[1] <= MOST[name][1]
