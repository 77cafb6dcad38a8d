"""The base of the LSTM decoders: the loop over the words of captions in training, and the step of search.

A decoder of this family defines its `memory` of an image, the initial state (`start`), how it reads a word (`read`,
`advance`) and the vector that is compared with the word vectors (`outputs`). Only `advance` runs word by word; `read`
and `outputs` are computed for all words of a batch together, in a few large matrix products. A GPU executes `advance`
faster than Python can launch its operations, so each operation that is left out there makes training faster.

Shapes: as in `captionlib.decoders.base`; H state width, E embedding width, S places of all steps (see `LongestFirst`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.decoders.base import Decoder, DecoderOutput, LongestFirst, Memory, State, WordTable, choose_inputs

WORD_SCALE = 16.0
"""Factor for word vectors at the input of a cell. The table is initialised with a standard deviation of 0.05, which the
output needs (see `WordTable`); next to image vectors of about 1, words would have little influence, and training would
take many more epochs. A power of two is exact in floating point."""


Weights = tuple[Tensor, ...]


class Advance(NamedTuple):
    """Result of reading one word, with a row for each caption of each image."""

    h: Tensor
    """(R, H)."""
    c: Tensor
    """(R, H)."""
    found: tuple[Tensor, ...]
    """Values of this step that `outputs` needs, (R, ...) each."""
    attention: Tensor | None = None
    """(R, N)."""


class RecurrentDecoder(Decoder):
    """Base class, see the module's docstring. `start` returns h and c (B, H), and `attention` (B, N) if there is
    any.
    """

    words: WordTable
    dropout: nn.Dropout

    def weights(self) -> Weights:
        """Return the parts of parameters that `read` and `advance` need, as the latter must not cut them out word by
        word: the gradient of a part has the size of the whole.
        """
        raise NotImplementedError

    def read(self, word: Tensor, weights: Weights) -> Tensor:
        """Compute what the cell needs of words alone (..., E), in training of all words at once."""
        raise NotImplementedError

    def advance(self, read: Tensor, h: Tensor, c: Tensor, memory: Memory, weights: Weights) -> Advance:
        """Read one word: the rows (R, ...) that `read` returned, h and c (R, H)."""
        raise NotImplementedError

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Output projection: word embedding (..., E) and the values returned in `Advance.found` → query (..., E) for
        the tied output layer.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        """Features (B, N, D), tokens (B, K, T) → logits and targets of all words."""
        order, weights = LongestFirst(tokens).to(features.device), self.weights()
        memory = self.memory(features[order.image_order])
        start = self.start(memory)
        per_image = tokens.shape[1]
        h, c = (start[name].repeat_interleave(per_image, dim=0) for name in ("h", "c"))  # (R, H)
        words = self.dropout(self.words(order.tokens)).flatten(0, 2).index_select(0, order.places)  # (S, E)
        shapes = list(zip(order.num_images, order.num_captions, strict=True))
        sizes = [images * captions for images, captions in shapes]
        given = order.tokens.flatten()[order.places].split(sizes)
        reads = self.read(words, weights).split(sizes)
        before = (len(order.tokens), per_image)
        own_words = [words[: sizes[0]]]
        found: list[tuple[Tensor, ...]] = []
        attention: list[Tensor] = []
        for t, shape in enumerate(shapes):
            if shape != before:
                # Cut only when needed, because the gradient of a part has the size of the whole.
                h, c = (_rectangle(x, before, shape) for x in (h, c))
                memory = {name: tensor[: shape[0]] for name, tensor in memory.items()}
            read = reads[t]
            if teacher_forcing < 1 and t:
                with torch.no_grad():
                    last = (_rectangle(x, before, shape) for x in (own_words[-1], *found[-1]))
                    drawn = choose_inputs(given[t], self.words.logits(self.outputs(*last)), teacher_forcing)
                own_words.append(self.dropout(self.words(drawn)))
                read = self.read(own_words[-1], weights)
            h, c, values, looks = self.advance(read, h, c, memory, weights)
            found.append(values)
            if looks is not None:
                attention.append(looks)
            before = shape
        if teacher_forcing < 1:
            words = torch.cat(own_words)
        rows = [x.index_select(0, order.words) for x in (words, *map(torch.cat, zip(*found, strict=True)))]  # (M, ...)
        attention_sum: Tensor | None = None
        if attention:
            looks = torch.cat(attention).index_select(0, order.words)  # (M, N)
            attention_sum = looks.new_zeros(len(tokens) * per_image, looks.shape[1])
            attention_sum = attention_sum.index_add(0, order.caption_index, looks).unflatten(0, (-1, per_image))
        return DecoderOutput(self.words.logits(self.outputs(*rows)), order.targets, order.caption_index, attention_sum)

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Tokens (R,) → log-probabilities (R, V), and the state with h, c (R, H) and attention (R, N)."""
        word, weights = self.dropout(self.words(tokens)), self.weights()  # (R, E)
        h, c, found, attention = self.advance(self.read(word, weights), state["h"], state["c"], memory, weights)
        logits = self.words.logits(self.outputs(word, *found))  # (R, V)
        state = {"h": h, "c": c}
        if attention is not None:
            state["attention"] = attention
        return logits.log_softmax(dim=-1), state


def advance_cell(cell: nn.LSTMCell, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next h and c of a cell.

    Args:
        inputs: the product of the cell's input with `weight_ih`, and both biases (R, 4H).
        h: (R, H).
        c: (R, H).
    """
    if inputs.is_cuda:
        # What PyTorch's own cell calls, with what the input contributes computed beforehand.
        h, c, _ = torch.ops.aten._thnn_fused_lstm_cell(inputs, F.linear(h, cell.weight_hh), c)
        return h, c
    gates = torch.addmm(inputs, h, cell.weight_hh.t())  # (R, 4H)
    # As PyTorch's own cell does it: "unsafe" allows the parts to be changed in place.
    enter, forget, new, out = gates.unsafe_chunk(4, dim=1)
    c = (forget.sigmoid_() * c).add_(enter.sigmoid_() * new.tanh_())
    return out.sigmoid_() * c.tanh(), c


def _rectangle(rows: Tensor, shape: tuple[int, int], part: tuple[int, int]) -> Tensor:
    """Cut the first images and captions out of the rows (B * K, ...) of a rectangle: (B' * K', ...)."""
    if part == shape:
        return rows
    return rows.unflatten(0, shape)[: part[0], : part[1]].flatten(0, 1)
