"""LSTM with adaptive attention: at each word, the decoder attends to the image or to its own memory.

Knowing When to Look (Lu et al. 2017, section 2): a visual sentinel, computed from the memory cell of the LSTM, is an
additional position for the attention. Its weight β is 1 minus the weights of the image.

Shapes: as in `captionlib.decoders.base`; H width of state and features, E embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders.attention import ATTENTION_KINDS, SingleHeadAttention
from captionlib.decoders.base import FeatureProjection, Memory, State, WordTable
from captionlib.decoders.recurrent import WORD_SCALE, Advance, RecurrentDecoder, advance_cell
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

    def advance(self, word: Tensor, h: Tensor, c: Tensor, memory: Memory) -> Advance:
        """Read word and image, then attend with the new state to the positions of the image and the sentinel."""
        image = self.dropout(memory["image"]).unsqueeze(1).expand(-1, word.shape[1], -1)
        inputs = torch.cat([WORD_SCALE * word, image], dim=-1)  # (B, K, 2E)
        gate = torch.sigmoid(self.sentinel_x(inputs) + self.sentinel_h(h))  # eq. 9
        h, c = advance_cell(self.cell, inputs, h, c)
        sentinel = gate * torch.tanh(c)  # (B, K, H), eq. 10
        weights = torch.cat([self.attention.scores(h, memory["keys"]), self._score(h, sentinel)], dim=-1).softmax(
            dim=-1
        )
        places, beta = weights[..., :-1], weights[..., -1:]  # (B, K, N), (B, K, 1): eq. 12, 13
        context = places @ memory["values"] + beta * sentinel  # (B, K, H), eq. 11
        return Advance(h, c, (context + h,), places)

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Combine context and state (eq. 13)."""
        (seen,) = found
        return self.output(self.dropout(seen))

    def _score(self, h: Tensor, sentinel: Tensor) -> Tensor:
        """Score each state with its own sentinel, both (B, K, H) → (B, K, 1)."""
        key = self.sentinel_key(sentinel).flatten(0, 1).unsqueeze(1)  # (R, 1, A)
        return self.attention.scores(h.flatten(0, 1).unsqueeze(1), key).view(*h.shape[:2], 1)
