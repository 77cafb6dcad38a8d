"""LSTM with adaptive attention: at each word, the decoder attends to the image or to its own memory.

Knowing When to Look (Lu et al. 2017, section 2): a visual sentinel, computed from the memory cell of the LSTM, is an
additional position for the attention. Its weight β is 1 minus the weights of the image.

Shapes: as in `captionlib.decoders.base`; H width of state and features, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders.attention import ATTENTION_KINDS, SingleHeadAttention
from captionlib.decoders.base import FeatureProjection, Memory, State, WordTable
from captionlib.decoders.recurrent import WORD_SCALE, Advance, RecurrentDecoder, Weights, advance_cell
from captionlib.errors import UserError


class LSTMAdaptiveDecoder(RecurrentDecoder):
    """See the module's docstring.

    Args:
        config: widths, dropout, kind of attention (the paper's is additive), tying.
        feature_dim: D.
        vocabulary_size: V.

    Raises:
        UserError: the features' width is not the state's, or attention has several heads.
    """

    def __init__(self, config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        hidden, embedding = config.hidden_dim, config.embedding_dim
        self.project = FeatureProjection(feature_dim, config.projection_dim)
        if self.project.out_dim != hidden:
            raise UserError(
                f"lstm_adaptive weighs features of width {self.project.out_dim} against a state of width {hidden}: "
                "make decoder.projection_dim and decoder.hidden_dim the same"
            )
        attention = ATTENTION_KINDS[config.attention](hidden, hidden, config.attention_dim, config.num_heads)
        if not isinstance(attention, SingleHeadAttention):
            raise UserError(
                f"lstm_adaptive needs one score per position, which decoder.attention {config.attention!r} has not: "
                "choose additive, dot, scaled_dot or general"
            )
        self.attention = attention
        self.words = WordTable(vocabulary_size, embedding, tied=config.tie_weights)
        self.embed_image = nn.Linear(hidden, embedding)
        self.cell = nn.LSTMCell(2 * embedding, hidden)
        self.sentinel_x = nn.Linear(2 * embedding, hidden, bias=False)
        self.sentinel_h = nn.Linear(hidden, hidden)
        self.sentinel_key = nn.Linear(hidden, attention.key_dim, bias=False)
        self.output = nn.Linear(hidden, embedding)
        self.dropout = nn.Dropout(config.dropout)

    def memory(self, features: Tensor) -> Memory:
        """(B, N, D) → projected values (B, N, H), the attention's keys, and the whole image as a vector (B, E)."""
        values = self.project(features)
        image = torch.relu(self.embed_image(values.mean(dim=1)))  # eq. 16, 17
        return {"values": values, "keys": self.attention.keys(values), "image": image}

    def start(self, memory: Memory) -> State:
        """Return h and c (B, H) of zeros, because every input contains the image."""
        values = memory["values"]
        zeros = values.new_zeros(len(values), self.cell.hidden_size)
        return {"h": zeros, "c": zeros, "attention": values.new_zeros(values.shape[:2])}

    def weights(self) -> Weights:
        """Matrices of the cell (4H, E) and of the sentinel (H, E), first for the word, then for the image."""
        cell, sentinel, width = self.cell.weight_ih, self.sentinel_x.weight, self.words.embedding.embedding_dim
        return cell[:, :width], cell[:, width:], sentinel[:, :width], sentinel[:, width:]

    def read(self, word: Tensor, weights: Weights) -> Tensor:
        """The word's part of the inputs of cell and sentinel, with the biases (..., 5H)."""
        for_cell, _, for_sentinel, _ = weights
        word = WORD_SCALE * word
        return torch.cat(
            [
                F.linear(word, for_cell, self.cell.bias_ih + self.cell.bias_hh),
                F.linear(word, for_sentinel, self.sentinel_h.bias),
            ],
            dim=-1,
        )

    def advance(self, read: Tensor, h: Tensor, c: Tensor, memory: Memory, weights: Weights) -> Advance:
        """Read word and image, then attend with the new state to the positions of the image and the sentinel."""
        keys, values = memory["keys"], memory["values"]
        image, (_, for_cell, _, for_sentinel) = self.dropout(memory["image"]), weights
        of_image = torch.cat([F.linear(image, for_cell), F.linear(image, for_sentinel)], dim=-1)  # (B, 5H)
        inputs = (read.unflatten(0, (len(image), -1)) + of_image.unsqueeze(1)).flatten(0, 1)  # (R, 5H)
        of_cell, of_sentinel = inputs.unsafe_split_with_sizes([4 * h.shape[1], h.shape[1]], dim=1)
        gate = torch.sigmoid(torch.addmm(of_sentinel, h, self.sentinel_h.weight.t()))  # eq. 9
        h, c = advance_cell(self.cell, of_cell, h, c)
        sentinel = gate * torch.tanh(c)  # (R, H), eq. 10
        scores = self.attention.scores(h.unflatten(0, (len(keys), -1)), keys).flatten(0, 1)  # (R, N)
        looks = torch.cat([scores, self._score(h, sentinel)], dim=-1).softmax(dim=-1)
        places, beta = looks[:, :-1], looks[:, -1:]  # (R, N), (R, 1): eq. 12, 13
        context = (places.unflatten(0, (len(keys), -1)) @ values).flatten(0, 1) + beta * sentinel  # (R, H), eq. 11
        return Advance(h, c, (context + h,), places)

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Combine context and state (eq. 13)."""
        (seen,) = found
        return self.output(self.dropout(seen))

    def _score(self, h: Tensor, sentinel: Tensor) -> Tensor:
        """Score each state with its own sentinel, both (R, H) → (R, 1)."""
        return self.attention.scores(h.unsqueeze(1), self.sentinel_key(sentinel).unsqueeze(1)).squeeze(1)
