"""LSTM that reads the image as its first word and has no attention.

Show and Tell (Vinyals et al. 2015, section 3.1, eq. 10-12). A grid of features is averaged.

Shapes: as in `captionlib.decoders.base`; H state width, E embedding width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders.base import FeatureProjection, Memory, State, WordTable
from captionlib.decoders.recurrent import WORD_SCALE, Advance, RecurrentDecoder, Weights, advance_cell


class LSTMInitDecoder(RecurrentDecoder):
    """See the module's docstring.

    Args:
        config: widths, dropout, tying.
        feature_dim: D.
        vocabulary_size: V.
    """

    def __init__(self, config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        hidden, embedding = config.hidden_dim, config.embedding_dim
        self.project = FeatureProjection(feature_dim, config.projection_dim)
        self.words = WordTable(vocabulary_size, embedding, tied=config.tie_weights)
        self.embed_image = nn.Linear(self.project.out_dim, embedding)
        self.cell = nn.LSTMCell(embedding, hidden)
        self.output = nn.Linear(hidden, embedding)
        self.dropout = nn.Dropout(config.dropout)

    def memory(self, features: Tensor) -> Memory:
        """Project features (B, N, D) to an image vector (B, E)."""
        return {"image": self.embed_image(self.project(features.mean(dim=1)))}

    def start(self, memory: Memory) -> State:
        """h and c (B, H) after the image (eq. 10)."""
        h, c = self.cell(self.dropout(memory["image"]))
        return {"h": h, "c": c}

    def weights(self) -> Weights:
        """Nothing beside the parameters."""
        return ()

    def read(self, word: Tensor, weights: Weights) -> Tensor:
        """The cell's input, with the biases (..., 4H)."""
        return F.linear(WORD_SCALE * word, self.cell.weight_ih, self.cell.bias_ih + self.cell.bias_hh)

    def advance(self, read: Tensor, h: Tensor, c: Tensor, memory: Memory, weights: Weights) -> Advance:
        """Read the word (eq. 11)."""
        h, c = advance_cell(self.cell, read, h, c)
        return Advance(h, c, (h,))

    def outputs(self, word: Tensor, *found: Tensor) -> Tensor:
        """Use the state alone (eq. 12); the word vectors are the rows of the matrix of the last layer."""
        (h,) = found
        return self.output(self.dropout(h))
