"""LSTM with attention: at every word the decoder looks at the image anew.

Show, Attend and Tell (Xu et al. 2015, section 3.1.2), with any attention of `captionlib.attention`: the state
starts from the mean feature, the context joins the word at the LSTM's input, and the output is the paper's
deep output layer (eq. 7).

Shapes: as in `captionlib.decoders.base`; H state width, E embedding width, P width of projected features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captionlib.attention import ATTENTION_KINDS
from captionlib.config import DecoderConfig
from captionlib.decoders.base import (
    DecoderOutput,
    FeatureProjection,
    LongestFirst,
    Memory,
    State,
    WordTable,
    choose_inputs,
)


class LSTMAttentionDecoder(nn.Module):
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

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        """Features (B, N, D), tokens (B, K, T) → logits and targets of all words."""
        order = LongestFirst(tokens)
        memory = self.memory(features[order.image_order])
        start = self.start(memory)
        per_image = tokens.shape[1]
        h, c = (start[name].unsqueeze(1).expand(-1, per_image, -1) for name in ("h", "c"))  # (B, K, H)
        looked = memory["values"].new_zeros(*tokens.shape[:2], memory["values"].shape[1])  # (B, K, N)
        embedded = self.dropout(self.words(order.tokens))  # (B, K, T, E)
        previous: Tensor | None = None
        outputs, targets = [], []
        for t, (images, captions) in enumerate(zip(order.num_images, order.num_captions, strict=True)):
            here = (slice(images), slice(captions))
            word = embedded[here][:, :, t]  # (B', K', E)
            if teacher_forcing < 1 and previous is not None:
                own = self.words.logits(previous[here])
                word = self.dropout(self.words(choose_inputs(order.tokens[here][:, :, t], own, teacher_forcing)))
            memory = {name: tensor[:images] for name, tensor in memory.items()}
            h, c, context, weights = self._advance(word, h[here], c[here], memory)
            previous = self._output(word, h, context)  # (B', K', E)
            active = order.active[here][:, :, t]  # (B', K')
            outputs.append(previous[active])
            targets.append(order.tokens[here][:, :, t + 1][active])
            looked[here] = looked[here] + weights * active.unsqueeze(-1)
        return DecoderOutput(self.words.logits(torch.cat(outputs)), torch.cat(targets), order.restore(looked))

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

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Tokens (R,) → log-probabilities (R, V), and the state with h, c (R, H) and attention (R, N)."""
        images = memory["values"].shape[0]
        word = self.dropout(self.words(tokens)).unflatten(0, (images, -1))  # (B, K, E)
        h, c = (state[name].unflatten(0, (images, -1)) for name in ("h", "c"))
        h, c, context, weights = self._advance(word, h, c, memory)
        logits = self.words.logits(self._output(word, h, context).flatten(0, 1))  # (R, V)
        state = {"h": h.flatten(0, 1), "c": c.flatten(0, 1), "attention": weights.flatten(0, 1)}
        return logits.log_softmax(dim=-1), state

    def _advance(self, word: Tensor, h: Tensor, c: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One word further: (B, K, E), (B, K, H), (B, K, H) → h, c, context (B, K, P), weights (B, K, N)."""
        context, weights = self.attention(h, memory["keys"], memory["values"])
        if self.gate is not None:
            context = torch.sigmoid(self.gate(h)) * context
        inputs = torch.cat([word, context], dim=-1).flatten(0, 1)  # (R, E + P)
        h_next, c_next = self.cell(inputs, (h.flatten(0, 1), c.flatten(0, 1)))
        return h_next.view_as(h), c_next.view_as(c), context, weights

    def _output(self, word: Tensor, h: Tensor, context: Tensor) -> Tensor:
        """The deep output layer (eq. 7) up to the word vectors: (B, K, E)."""
        return word + self.output_h(self.dropout(h)) + self.output_z(self.dropout(context))
