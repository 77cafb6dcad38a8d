"""The contract between decoders and their two users: training (`forward`) and search (`memory`, `start`, `step`).

Features become a *memory* once per image and are never copied per beam; a *state* has one row per beam.

Shapes: B images, N positions, D feature width, K rows per image (captions in training, beams in search),
R = B * K rows with the K rows of an image side by side, T tokens, V words in the vocabulary, M words to predict.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.devices import to_device
from captionlib.vocabulary import PAD

Memory = dict[str, Tensor]
"""Tensors computed from an image once. Dimension 0 is the image."""

State = dict[str, Tensor]
"""Tensors that change with each word. Dimension 0 is the row. For decoders with attention, `"attention"` contains the
weights of the last step (R, N)."""


class DecoderOutput(NamedTuple):
    """Result of teacher forcing: one row per word to predict, including `<eos>` and without `<pad>`.

    Captions differ in length by a factor of two, so computing the padding would double the work.
    """

    logits: Tensor
    """(M, V): scores of the next word."""
    targets: Tensor
    """(M,) int64: the next word, in the same order."""
    captions: Tensor
    """(M,) int64: index of the caption that the word belongs to, b * K + k."""
    attention: Tensor | None
    """(B, K, N): attention weights summed over the words of a caption; None without attention."""
    objects: Tensor | None = None
    """(B, C): logits of the object categories; None if objects are not learnt."""


class Decoder(nn.Module):
    """A language model conditioned on an image."""

    max_tokens: int | None = None
    """Longest caption that the decoder can represent, including `<eos>`; None for no limit."""

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        """Score given captions: features (B, N, D), tokens (B, K, T) as `<bos>` words `<eos>` and `<pad>`.

        Args:
            teacher_forcing: probability that the input of a step is the given word instead of the model's own choice
                (scheduled sampling, Bengio et al. 2015), drawn per word from torch's generator.

        Raises:
            ValueError: there is no caption, or one is too long.
        """
        raise NotImplementedError

    def memory(self, features: Tensor) -> Memory:
        """Compute what every step needs of the images, from features (B, N, D)."""
        raise NotImplementedError

    def start(self, memory: Memory) -> State:
        """Return the state before `<bos>`, one row per image."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """Read the last words (R,) int64; return log-probabilities of the next words (R, V) and the new state."""
        raise NotImplementedError


class FeatureProjection(nn.Module):
    """Projects features (B, N, D) → (B, N, projection_dim) with layer normalisation; width 0 leaves them unchanged."""

    def __init__(self, feature_dim: int, projection_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_dim = projection_dim or feature_dim
        self.layers: nn.Module = nn.Identity()
        if projection_dim:
            self.layers = nn.Sequential(
                nn.Linear(feature_dim, projection_dim), nn.LayerNorm(projection_dim), nn.Dropout(dropout)
            )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class WordTable(nn.Module):
    """Word embeddings: ids → vectors at the input, vectors → logits at the output.

    Tied, both use one table (Press & Wolf 2017). It is initialised with standard deviation 0.05: with 1, the default of
    `nn.Embedding`, the first logits are in the tens and training does not recover.
    """

    def __init__(self, vocabulary_size: int, embedding_dim: int, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.output_weight = None if tied else nn.Parameter(torch.randn(vocabulary_size, embedding_dim) * 0.05)
        self.output_bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(self, tokens: Tensor) -> Tensor:
        """Word ids (...) → vectors (..., E)."""
        return self.embedding(tokens)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the scores of all words (..., V) from vectors (..., E)."""
        weight = self.embedding.weight if self.output_weight is None else self.output_weight
        return F.linear(x, weight, self.output_bias)


def choose_inputs(given: Tensor, logits: Tensor, teacher_forcing: float) -> Tensor:
    """Scheduled sampling: keep each given word (...,) with probability `teacher_forcing`, or draw a word from the
    model's distribution `logits` (..., V) (Bengio et al. 2015, section 2.4)."""
    keep = torch.rand(given.shape, device=given.device) < teacher_forcing
    drawn = torch.multinomial(logits.detach().flatten(0, -2).softmax(-1), 1).view_as(given)
    return torch.where(keep, given, drawn)


class LongestFirst:
    """Sorts captions such that those that are not finished at step t form nearly a rectangle.

    Images are sorted by their longest caption and captions within an image by length. Step t of a recurrent decoder
    then needs only the rectangle `[:num_images[t], :num_captions[t]]` of captions. S is the number of places in the
    rectangles of all steps; they are numbered step by step, and within a step image by image.

    Everything is computed on the host, where the captions come from, because reading row counts from a device would
    block.

    Args:
        tokens: (B, K, T) int64, `<bos>` words `<eos>`, then `<pad>`; a missing caption is all `<pad>`.
    """

    places: Tensor
    """(S,) int64: index of the word that is read at each place, among the B * K * T sorted tokens."""
    words: Tensor
    """(M,) int64: places after which there is a word to predict."""
    targets: Tensor
    """(M,) int64: these words."""
    caption_index: Tensor
    """(M,) int64: index of the caption that each word belongs to, b * K + k."""

    def __init__(self, tokens: Tensor) -> None:
        tokens = tokens.cpu()
        lengths = (tokens != PAD).sum(dim=-1).sub_(1).clamp_(min=0)  # (B, K) words to predict
        longest = int(lengths.max())
        if longest == 0:
            raise ValueError(f"no image of this batch of {len(tokens)} has a caption: leave out images without")
        self.image_order = lengths.amax(dim=1).argsort(descending=True, stable=True)  # (B,)
        tokens, lengths = tokens[self.image_order], lengths[self.image_order]
        lengths, caption_order = lengths.sort(dim=1, descending=True, stable=True)  # (B, K)
        rows = self.image_order.unsqueeze(1) * tokens.shape[1]
        self.captions = rows + caption_order  # (B, K) where each caption was: b * K + k
        self.tokens = tokens.gather(1, caption_order.unsqueeze(-1).expand_as(tokens))
        active = lengths.unsqueeze(-1) > torch.arange(longest)  # (B, K, longest)
        has_image, has_caption = active[:, 0], active.any(dim=0)  # (B, longest), (K, longest)
        self.num_images = has_image.sum(dim=0).tolist()
        self.num_captions = has_caption.sum(dim=0).tolist()
        rectangles = _step_by_step(has_image.unsqueeze(1) & has_caption).nonzero().squeeze(1)  # (S,)
        is_word = _step_by_step(active)[rectangles]  # (S,)
        index = torch.arange(self.tokens.numel()).view_as(self.tokens)  # (B, K, T)
        self.places = _step_by_step(index[..., :longest])[rectangles]
        self.words = is_word.nonzero().squeeze(1)
        self.targets = self.tokens.flatten()[self.places[self.words] + 1]
        self.caption_index = self.captions.flatten()[self.places[self.words] // tokens.shape[2]]

    def to(self, device: torch.device) -> LongestFirst:
        """Return a copy with its tensors on the device."""
        for name in ("image_order", "captions", "tokens", "places", "words", "targets", "caption_index"):
            setattr(self, name, to_device(getattr(self, name), device))
        return self


def _step_by_step(x: Tensor) -> Tensor:
    """(B, K, T) → (T * B * K,)."""
    return x.permute(2, 0, 1).flatten()
