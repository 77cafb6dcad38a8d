"""LSTM with attention: at each word, the decoder attends to the image.

Show, Attend and Tell (Xu et al. 2015, section 3.1.2) with any attention of `captionlib.decoders.attention`: the state
is initialised from the mean feature, the context is concatenated to the word at the input of the LSTM, and the output
is the deep output layer of the paper (eq. 7).

Shapes: as in `captionlib.decoders.base`; H state width, E embedding width, P width of projected features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders.attention import ATTENTION_KINDS
from captionlib.decoders.base import FeatureProjection, Memory, State, WordTable
from captionlib.decoders.recurrent import WORD_SCALE, Advance, RecurrentDecoder, Weights, advance_cell


class LSTMAttentionDecoder(RecurrentDecoder):
    """See the module's docstring.

    Args:
        config: widths, dropout, kind of attention, gate, tying.
        feature_dim: D.
        vocabulary_size: V.
    """

    def __init__(self, config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        hidden, embedding = config.hidden_dim, config.embedding_dim
        self.project = FeatureProjection(feature_dim, config.projection_dim)
        width = self.project.out_dim
        self.words = WordTable(vocabulary_size, embedding, tied=config.tie_weights)
        self.init_h = nn.Linear(width, hidden)
        self.init_c = nn.Linear(width, hidden)
        attention = ATTENTION_KINDS[config.attention]
        self.attention = attention(hidden, width, config.attention_dim, config.num_heads)
        self.gate = nn.Linear(hidden, width) if config.gate else None
        self.cell = nn.LSTMCell(embedding + width, hidden)
        self.output_h = nn.Linear(hidden, embedding)
        self.output_z = nn.Linear(width, embedding, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def memory(self, features: Tensor) -> Memory:
        """(B, N, D) → projected values (B, N, P) and the attention's keys."""
        values = self.project(features)
        return {"values": values, "keys": self.attention.keys(values)}

    def start(self, memory: Memory) -> State:
        """h and c (B, H) from the mean feature (Xu et al. 2015, section 3.1.2)."""
        values = memory["values"]
        mean = values.mean(dim=1)
        return {
            "h": torch.tanh(self.init_h(mean)),
            "c": torch.tanh(self.init_c(mean)),
            "attention": values.new_zeros(values.shape[:2]),
        }

    def weights(self) -> Weights:
        """Matrices of the cell for the word (4H, E) and for the context (4H, P)."""
        matrix, width = self.cell.weight_ih, self.words.embedding.embedding_dim
        return matrix[:, :width], matrix[:, width:]

    def read(self, word: Tensor, weights: Weights) -> Tensor:
        """The word's part of the cell's input, with the biases (..., 4H)."""
        return F.linear(WORD_SCALE * word, weights[0], self.cell.bias_ih + self.cell.bias_hh)

    def advance(self, read: Tensor, h: Tensor, c: Tensor, memory: Memory, weights: Weights) -> Advance:
        """Attend to the image with the last state, then read word and context."""
        keys, values = memory["keys"], memory["values"]
        context, looks = self.attention(h.unflatten(0, (len(keys), -1)), keys, values)  # (B, K, P), (B, K, N)
        context = context.flatten(0, 1)  # (R, P)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(h)) * context
        h, c = advance_cell(self.cell, torch.addmm(read, context, weights[1].t()), h, c)
        return Advance(h, c, (h, context), looks.flatten(0, 1))

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Combine word, state and context (eq. 7)."""
        h, context = found
        return word + self.output_h(self.dropout(h)) + self.output_z(self.dropout(context))
