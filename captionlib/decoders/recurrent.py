"""The base of the LSTM decoders: the loop over the words of captions in training, and the step of search.

A decoder of this family defines its `memory` of an image, the initial state (`start`), how it reads a word (`advance`)
and the vector that is compared with the word vectors (`outputs`). Only `advance` runs word by word; `outputs` is
computed for all words of a batch together, in a few large matrix products.

Shapes: as in `captionlib.decoders.base`; H state width, E embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captionlib.decoders.base import Decoder, DecoderOutput, LongestFirst, Memory, State, WordTable, choose_inputs

WORD_SCALE = 16.0
"""Factor for word vectors at the input of a cell. The table is initialised with a standard deviation of 0.05, which the
output needs (see `WordTable`); next to image vectors of about 1, words would have little influence, and training would
take many more epochs. A power of two is exact in floating point."""


class Advance(NamedTuple):
    """Result of reading one word, with a row for each caption of each image."""

    h: Tensor
    """(B, K, H)."""
    c: Tensor
    """(B, K, H)."""
    found: tuple[Tensor, ...]
    """Values of this step that `outputs` needs, (B, K, ...) each."""
    attention: Tensor | None = None
    """(B, K, N)."""


class RecurrentDecoder(Decoder):
    """Base class, see the module's docstring. `start` returns h and c (B, H), and `attention` (B, N) if there is
    any.
    """

    words: WordTable
    dropout: nn.Dropout

    def advance(self, word: Tensor, h: Tensor, c: Tensor, memory: Memory) -> Advance:
        """Read one word: vectors (B, K, E), h and c (B, K, H)."""
        raise NotImplementedError

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Output projection: word embedding (..., E) and the values returned in `Advance.found` → query (..., E) for
        the tied output layer.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        """Features (B, N, D), tokens (B, K, T) → logits and targets of all words."""
        order = LongestFirst(tokens).to(features.device)
        memory = self.memory(features[order.image_order])
        start = self.start(memory)
        per_image = tokens.shape[1]
        h, c = (start[name].unsqueeze(1).expand(-1, per_image, -1) for name in ("h", "c"))  # (B, K, H)
        attention_sum: Tensor | None = None
        if "attention" in start:
            attention_sum = start["attention"].unsqueeze(1).repeat(1, per_image, 1)  # (B, K, N)
        embedded = self.dropout(self.words(order.tokens)).unbind(dim=2)  # T of (B, K, E)
        last: tuple[Tensor, ...] = ()
        read = []
        for t, (images, captions) in enumerate(zip(order.num_images, order.num_captions, strict=True)):
            here = (slice(images), slice(captions))
            if h.shape[:2] != (images, captions):
                # Sliced only when needed, because the gradient of a slice has the size of the whole tensor.
                h, c, last = h[here], c[here], tuple(part[here] for part in last)
                memory = {name: tensor[:images] for name, tensor in memory.items()}
            word = embedded[t][here]  # (B', K', E)
            if teacher_forcing < 1 and last:
                with torch.no_grad():
                    own = self.words.logits(self.outputs(*last))
                word = self.dropout(self.words(choose_inputs(order.tokens[here][:, :, t], own, teacher_forcing)))
            h, c, found, attention = self.advance(word, h, c, memory)
            last = (word, *found)
            read.append([part.flatten(0, 1) for part in last])
            active = order.active[here][:, :, t]  # (B', K')
            if attention_sum is not None and attention is not None:
                attention_sum[here] = attention_sum[here] + attention * active.unsqueeze(-1)
        return DecoderOutput(
            self.words.logits(
                self.outputs(*(torch.cat(parts).index_select(0, order.words) for parts in zip(*read, strict=True)))
            ),
            order.targets,
            order.caption_index,
            None if attention_sum is None else order.restore(attention_sum),
        )

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Tokens (R,) → log-probabilities (R, V), and the state with h, c (R, H) and attention (R, N)."""
        images = next(iter(memory.values())).shape[0]
        word = self.dropout(self.words(tokens)).unflatten(0, (images, -1))  # (B, K, E)
        h, c = (state[name].unflatten(0, (images, -1)) for name in ("h", "c"))
        h, c, found, attention = self.advance(word, h, c, memory)
        logits = self.words.logits(self.outputs(word, *found).flatten(0, 1))  # (R, V)
        state = {"h": h.flatten(0, 1), "c": c.flatten(0, 1)}
        if attention is not None:
            state["attention"] = attention.flatten(0, 1)
        return logits.log_softmax(dim=-1), state


def advance_cell(cell: nn.LSTMCell, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM cell on (B, K, ...) rows: inputs, h (B, K, H), c (B, K, H) → h, c (B, K, H)."""
    h_next, c_next = cell(inputs.flatten(0, 1), (h.flatten(0, 1), c.flatten(0, 1)))
    return h_next.unflatten(0, h.shape[:2]), c_next.unflatten(0, c.shape[:2])
