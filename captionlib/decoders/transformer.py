"""Transformer decoder: each word attends to the preceding words and to the image.

Vaswani et al. 2017 with pre-layer normalisation (Xiong et al. 2020) and projected features in place of an encoder's
output. In training, all words of a caption are computed together. In search, keys and values of the preceding words are
kept in the state, and those of the image in the memory, once per image.

Shapes: as in `captionlib.decoders.base`; H width, L words read at once, t words read before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.config import DecoderConfig
from captionlib.decoders.attention import MultiHeadAttention, split_heads
from captionlib.decoders.base import Decoder, DecoderOutput, FeatureProjection, Memory, State, WordTable, choose_inputs
from captionlib.devices import to_device
from captionlib.errors import UserError
from captionlib.vocabulary import PAD


class TransformerDecoder(Decoder):
    """See the module's docstring.

    Args:
        config: widths, heads, layers, dropout, tying, and the longest caption.
        feature_dim: D.
        vocabulary_size: V.

    Raises:
        UserError: the features' width is not the decoder's, or the heads don't divide it.
    """

    def __init__(self, config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.max_tokens: int = config.max_tokens
        self.project = FeatureProjection(feature_dim, config.projection_dim)
        if self.project.out_dim != width:
            raise UserError(
                f"the transformer of width {width} looks at features of width {self.project.out_dim}: "
                "make decoder.projection_dim and decoder.hidden_dim the same"
            )
        self.words = WordTable(vocabulary_size, width, tied=config.tie_weights)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.num_heads, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)
        self.positions: Tensor
        self.register_buffer("positions", sinusoidal_positions(config.max_tokens, width), persistent=False)

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        """Score captions: features (B, N, D), tokens (B, K, T) → logits and targets of all words.

        If `teacher_forcing` is less than 1, captions are read twice: the model's own choices of the first pass replace
        some words in the second (Mihaylova & Martins 2019, section 3).
        """
        # Shapes that depend on caption lengths are computed on the host, so that it need not wait for the device.
        following = tokens[:, :, 1:].cpu()  # (B, K, T - 1)
        words = (following != PAD).flatten().nonzero().squeeze(1)  # (M,)
        if len(words) == 0:
            raise UserError(f"no image of this batch of {len(tokens)} has a caption: leave out images without")
        device, captions = features.device, words.div(following.shape[2], rounding_mode="floor")
        tokens, following, words, captions = (to_device(x, device) for x in (tokens, following, words, captions))
        active, targets = following != PAD, following.flatten().index_select(0, words)
        memory = self.memory(features)
        inputs = tokens[:, :, :-1]
        if teacher_forcing < 1:
            with torch.no_grad():
                own = self.words.logits(self._read_captions(inputs, memory)[0].flatten(0, 2).index_select(0, words))
            mixed = following.masked_scatter(active, choose_inputs(targets, own, teacher_forcing))
            inputs = torch.cat([tokens[:, :, :1], mixed[:, :, :-1]], dim=-1)
        hidden, weights = self._read_captions(inputs, memory)
        attention_sum = (weights * active.unsqueeze(-1)).sum(dim=2)  # (B, K, N)
        read = hidden.flatten(0, 2).index_select(0, words)  # (M, H)
        return DecoderOutput(self.words.logits(read), targets, captions, attention_sum)

    def memory(self, features: Tensor) -> Memory:
        """(B, N, D) → each layer's keys and values of the image (B, N, 2H)."""
        values = self.project(features)
        return {f"image_{i}": layer.image_attention.keys(values) for i, layer in enumerate(self._layers())}

    def start(self, memory: Memory) -> State:
        """Return empty keys and values of the words for each layer (B, 0, 2H); dimension 1 is time."""
        keys = memory["image_0"]
        state = {f"words_{i}": keys.new_zeros(len(keys), 0, keys.shape[-1]) for i in range(len(self.layers))}
        return {**state, "attention": keys.new_zeros(keys.shape[:2])}

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Tokens (R,) → log-probabilities (R, V), and the state with one more word (R, t + 1, 2H)."""
        hidden, weights, state = self._read(tokens.unsqueeze(1), state, memory)
        log_probs = self.words.logits(hidden[:, 0]).log_softmax(dim=-1)
        return log_probs, {**state, "attention": weights[:, 0]}

    def _read_captions(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Whole captions (B, K, L) → hidden (B, K, L, H), the last layer's weights (B, K, L, N)."""
        state = {name: past.repeat_interleave(tokens.shape[1], dim=0) for name, past in self.start(memory).items()}
        hidden, weights, _ = self._read(tokens.flatten(0, 1), state, memory)
        return hidden.unflatten(0, tokens.shape[:2]), weights.unflatten(0, tokens.shape[:2])

    def _read(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, Tensor, State]:
        """More words (R, L) → hidden (R, L, H), the last layer's weights (R, L, N), the state with these words."""
        first = state["words_0"].shape[1]
        last = first + tokens.shape[1]
        if last > self.max_tokens:
            raise UserError(
                f"a caption of {last} tokens, <eos> included, exceeds decoder.max_tokens {self.max_tokens}: "
                "shorten captions, or train with a larger one"
            )
        # Word embeddings start small for the output layer (see WordTable): scale them to the size of the positions.
        x = self.words(tokens) * math.sqrt(self.positions.shape[1]) + self.positions[first:last]
        x = self.dropout(x)
        state = dict(state)
        weights = state["attention"]
        for i, layer in enumerate(self._layers()):
            x, weights, state[f"words_{i}"] = layer(x, state[f"words_{i}"], memory[f"image_{i}"])
        return self.norm(x), weights, state

    def _layers(self) -> list[TransformerLayer]:
        return list(self.layers)  # type: ignore[arg-type]  # nn.ModuleList doesn't know what it holds


class TransformerLayer(nn.Module):
    """Self-attention, attention to the image, feed-forward network (Vaswani et al. 2017, section 3.1).

    Args:
        width: H; the feed-forward network is four times as wide.
        num_heads: of both attentions.
        dropout: after each part and within the feed-forward network.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_words, self.norm_image, self.norm_feed_forward = (nn.LayerNorm(width) for _ in range(3))
        self.project_words = nn.Linear(width, 3 * width)
        self.project_context = nn.Linear(width, width)
        self.image_attention = MultiHeadAttention(width, width, num_heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, words: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read more words.

        Args:
            x: (R, L, H).
            words: keys and values of the words before (R, t, 2H).
            image: keys and values of the image (B, N, 2H).

        Returns:
            x (R, L, H), weights over the image (R, L, N), keys and values of all words (R, t + L, 2H).
        """
        context, words = self._look_back(self.norm_words(x), words)
        x = x + self.dropout(context)
        # The words of all captions of an image are queries to the same keys, so the keys are not copied.
        query = self.norm_image(x).view(image.shape[0], -1, x.shape[-1])  # (B, K * L, H)
        context, weights = self.image_attention(query, image, image)
        x = x + self.dropout(context.view_as(x))
        x = x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        return x, weights.view(*x.shape[:2], -1), words

    def _look_back(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Causal self-attention (R, L, H) → context (R, L, H), keys and values of all words (R, t + L, 2H)."""
        query, new = self.project_words(x).split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        words = torch.cat([words, new], dim=1)
        key, value = (split_heads(part, self.num_heads) for part in words.chunk(2, dim=-1))  # (R, heads, t + L, ...)
        # A single new word may attend to all words; several are a whole caption and need the causal mask.
        context = F.scaled_dot_product_attention(
            split_heads(query, self.num_heads), key, value, is_causal=x.shape[1] > 1
        )  # (R, heads, L, H / heads)
        return self.project_context(context.transpose(1, 2).flatten(2)), words


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5: (length, width) float32 in [-1, 1], sines at even columns, cosines at odd."""
    place = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    frequency = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = place * frequency  # (length, ceil(width / 2))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width].float()
