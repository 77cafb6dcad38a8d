"""Attention: a decoder's query over an image's features → the context vector and the attention weights.

All kinds share one contract, so that a decoder can use any of them:

    keys = attention.keys(values)                                    # once per image
    context, weights = attention(query, keys, values, mask)          # once per step

Shapes: B images, K queries per image (beams, or captions in training), N positions, Q query width, D feature width,
A key width. A mask is (B, N) bool, True for positions that may be attended to, at least one per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """The contract of all kinds of attention."""

    def keys(self, values: Tensor) -> Tensor:
        """Compute the keys (B, N, A) that queries are compared with, from values (B, N, D)."""
        raise NotImplementedError

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend with query (B, K, Q), keys (B, N, A), values (B, N, D) → context (B, K, D), weights (B, K, N) that
        sum to 1.
        """
        raise NotImplementedError


class SingleHeadAttention(Attention):
    """One score per query and position; the context is the mean of the values, weighted by the softmax of the scores.

    Args:
        key_dim: A.
    """

    def __init__(self, key_dim: int) -> None:
        super().__init__()
        self.key_dim = key_dim

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """Compute unnormalised scores (B, K, N), up to an additive constant that cancels in the softmax."""
        raise NotImplementedError

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend with query (B, K, Q), keys (B, N, A), values (B, N, D) → context (B, K, D), weights (B, K, N) that
        sum to 1.
        """
        return _attend(self.scores(query, keys), values, mask)


class AdditiveAttention(SingleHeadAttention):
    """Scores w · tanh(W_q q + W_k v): Bahdanau et al. 2015 (appendix A.1.2), used on images by Xu et al. 2015.

    On a CPU, the code computes 2 w · σ(2 (W_q q + W_k v)). As tanh(x) = 2 σ(2x) - 1, this differs by a constant, which
    cancels in the softmax. PyTorch computes σ in a third of the time there, and this is most of the time per word. On a
    GPU, the number of operations counts.
    """

    def __init__(self, query_dim: int, feature_dim: int, attention_dim: int) -> None:
        super().__init__(attention_dim)
        self.project_query = nn.Linear(query_dim, attention_dim)
        self.project_key = nn.Linear(feature_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)  # the softmax would cancel a bias

    def keys(self, values: Tensor) -> Tensor:
        """(B, N, D) → W_k v (B, N, A)."""
        return self.project_key(values)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, A) → (B, K, N), less a constant."""
        projected, keys = self.project_query(query).unsqueeze(2), keys.unsqueeze(1)  # (B, K, 1, A), (B, 1, N, A)
        if query.is_cuda:
            return self.score((projected + keys).tanh_()).squeeze(-1)
        compared = torch.add(2 * projected, keys, alpha=2).sigmoid_()  # (B, K, N, A)
        return 2 * self.score(compared).squeeze(-1)


class DotAttention(SingleHeadAttention):
    """Scores q · W_k v, optionally divided by √Q (Luong et al. 2015, eq. 8 `dot`; scaled: Vaswani et al. 2017, eq. 1).

    The features are projected to the width of the query.
    """

    def __init__(self, query_dim: int, feature_dim: int, *, scaled: bool) -> None:
        super().__init__(query_dim)
        self.project_key = nn.Linear(feature_dim, query_dim, bias=False)
        self.scale = 1 / math.sqrt(query_dim) if scaled else 1.0

    def keys(self, values: Tensor) -> Tensor:
        """(B, N, D) → W_k v (B, N, Q)."""
        return self.project_key(values)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, Q) → (B, K, N)."""
        return query @ keys.transpose(1, 2) * self.scale


class GeneralAttention(SingleHeadAttention):
    """Scores (W q) · v (Luong et al. 2015, eq. 8 `general`): the query is projected to the width of the features."""

    def __init__(self, query_dim: int, feature_dim: int) -> None:
        super().__init__(feature_dim)
        self.project_query = nn.Linear(query_dim, feature_dim, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """Return the features themselves."""
        return values

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, D) → (B, K, N)."""
        return self.project_query(query) @ keys.transpose(1, 2)


class MultiHeadAttention(Attention):
    """Several scaled dot-product attentions in parallel (Vaswani et al. 2017, section 3.2.2).

    The parameters are those of `nn.MultiheadAttention`, but keys are projected once per image. Values are projected in
    `keys` as well, because each head has its own view of them.
    """

    def __init__(self, query_dim: int, feature_dim: int, num_heads: int) -> None:
        super().__init__()
        if feature_dim % num_heads:
            raise ValueError(f"decoder.num_heads {num_heads} must divide the width of the features, {feature_dim}")
        self.num_heads = num_heads
        self.project_query = nn.Linear(query_dim, feature_dim)
        self.project_key = nn.Linear(feature_dim, feature_dim)
        self.project_value = nn.Linear(feature_dim, feature_dim)
        self.project_context = nn.Linear(feature_dim, feature_dim)

    def keys(self, values: Tensor) -> Tensor:
        """Compute keys and values side by side (B, N, 2D) from features (B, N, D)."""
        return torch.cat([self.project_key(values), self.project_value(values)], dim=-1)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K, Q), (B, N, 2D), values unused → context (B, K, D), weights (B, K, N), the heads' mean."""
        key, value = (split_heads(part, self.num_heads) for part in keys.chunk(2, dim=-1))  # (B, heads, N, D / heads)
        q = split_heads(self.project_query(query), self.num_heads)  # (B, heads, K, D / heads)
        energies = q @ key.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, heads, K, N)
        context, weights = _attend(energies, value, None if mask is None else mask.unsqueeze(1))
        return self.project_context(context.transpose(1, 2).flatten(2)), weights.mean(dim=1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, L, D) → (B, heads, L, D / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(energies: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Energies (..., K, N), values (..., N, D), mask (..., N) → context (..., K, D), weights (..., K, N)."""
    if mask is not None:
        energies = energies.masked_fill(~mask.unsqueeze(-2), float("-inf"))
    weights = energies.softmax(dim=-1)
    return weights @ values, weights


ATTENTION_KINDS: dict[str, Callable[[int, int, int, int], Attention]] = {
    "additive": lambda query, feature, width, heads: AdditiveAttention(query, feature, width),
    "dot": lambda query, feature, width, heads: DotAttention(query, feature, scaled=False),
    "scaled_dot": lambda query, feature, width, heads: DotAttention(query, feature, scaled=True),
    "general": lambda query, feature, width, heads: GeneralAttention(query, feature),
    "multi_head": lambda query, feature, width, heads: MultiHeadAttention(query, feature, heads),
}
"""Kind → function (query width, feature width, attention width, heads) → module."""
