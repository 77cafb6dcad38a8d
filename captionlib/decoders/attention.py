"""Attention: a decoder's query over an image's features → the context vector and the weights that made it.

All kinds share one contract, so that a decoder takes any of them:

    keys = attention.keys(values)                                    # once per image
    context, weights = attention(query, keys, values, mask)          # once per step

Shapes: B images, K queries per image (beams, or captions in training), N positions, Q query width,
D feature width, A key width. A mask is (B, N) bool, True where a position may be looked at, at least one per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """The contract."""

    def keys(self, values: Tensor) -> Tensor:
        """(B, N, D) → what queries are compared with (B, N, A)."""
        raise NotImplementedError

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K, Q), (B, N, A), (B, N, D) → context (B, K, D), weights (B, K, N) that sum to 1."""
        raise NotImplementedError


class SingleHeadAttention(Attention):
    """One score per query and position; the context is the mean of the values, weighted by the scores' softmax.

    Args:
        key_dim: A.
    """

    def __init__(self, key_dim: int) -> None:
        super().__init__()
        self.key_dim = key_dim

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, A) → (B, K, N), up to a number that is the same for all positions."""
        raise NotImplementedError

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K, Q), (B, N, A), (B, N, D) → context (B, K, D), weights (B, K, N) that sum to 1."""
        return _attend(self.scores(query, keys), values, mask)


class AdditiveAttention(SingleHeadAttention):
    """w · tanh(W_q q + W_k v), Bahdanau et al. 2015 (appendix A.1.2), as Xu et al. 2015 use it on images.

    It is computed as 2 w · σ(2 (W_q q + W_k v)), which differs by a constant, since tanh(x) = 2 σ(2x) - 1: PyTorch
    needs a third of the time for σ on a CPU, and this is most of what a word costs there.
    """

    def __init__(self, query_dim: int, feature_dim: int, attention_dim: int) -> None:
        super().__init__(attention_dim)
        self.project_query = nn.Linear(query_dim, attention_dim)
        self.project_key = nn.Linear(feature_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)  # a bias would cancel in the softmax

    def keys(self, values: Tensor) -> Tensor:
        """(B, N, D) → W_k v (B, N, A)."""
        return self.project_key(values)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, A) → (B, K, N), less a constant."""
        doubled = 2 * self.project_query(query)  # (B, K, A)
        compared = torch.add(doubled.unsqueeze(2), keys.unsqueeze(1), alpha=2).sigmoid_()  # (B, K, N, A)
        return 2 * self.score(compared).squeeze(-1)


class DotAttention(SingleHeadAttention):
    """q · W_k v, optionally divided by √Q (Luong et al. 2015, eq. 8 `dot`; scaled: Vaswani et al. 2017, eq. 1).

    The features are projected to the query's width, since the two seldom agree.
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
    """(W q) · v (Luong et al. 2015, eq. 8 `general`): the query is brought to the features' space."""

    def __init__(self, query_dim: int, feature_dim: int) -> None:
        super().__init__(feature_dim)
        self.project_query = nn.Linear(query_dim, feature_dim, bias=False)

    def keys(self, values: Tensor) -> Tensor:
        """The features themselves."""
        return values

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(B, K, Q), (B, N, D) → (B, K, N)."""
        return self.project_query(query) @ keys.transpose(1, 2)


class MultiHeadAttention(Attention):
    """Several scaled dot attentions side by side (Vaswani et al. 2017, section 3.2.2).

    The parameters are `nn.MultiheadAttention`'s own; projecting the keys once per image needs the parts apart.
    Here values are projected inside `keys`, because each head looks at its own view of them.
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
        """(B, N, D) → keys and values side by side (B, N, 2D)."""
        return torch.cat([self.project_key(values), self.project_value(values)], dim=-1)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, K, Q), (B, N, 2D), values unused → context (B, K, D), weights (B, K, N), the heads' mean."""
        key, value = (split_heads(part, self.num_heads) for part in keys.chunk(2, dim=-1))  # (B, heads, N, D / heads)
        q = split_heads(self.project_query(query), self.num_heads)  # (B, heads, K, D / heads)
        energies = q @ key.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, heads, K, N)
        context, weights = _attend(energies, value, None if mask is None else mask.unsqueeze(1))
        return self.project_context(context.transpose(1, 2).flatten(2)), weights.mean(dim=1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
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
