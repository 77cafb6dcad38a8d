"""Gives a trained decoder another vocabulary: its word tensors → word tensors of the new vocabulary.

Words that both vocabularies contain keep what was learnt about them. V words in the old vocabulary, W in the new one,
E width of a word's vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from captionlib.vocabulary import SPECIAL_WORDS, Vocabulary

WORD_TENSORS = ("words.embedding.weight", "words.output_weight", "words.output_bias")
"""Parameters of `captionlib.decoders.base.WordTable` with one row per word."""
_SPREAD = 0.05  # the same initialisation as in `WordTable`
_RARE = 0.1  # quantile of the learnt biases, so that a new word starts as probable as a rare known word


def extended(known: Vocabulary, other: Vocabulary) -> Vocabulary:
    """All words of `known` in their order, then the words of `other` that it lacks."""
    return Vocabulary([*known.words, *(word for word in other.words if word not in known)])


def carry_over(
    weights: Mapping[str, Tensor], known: Vocabulary, wanted: Vocabulary, seed: int = 0
) -> dict[str, Tensor]:
    """Return a decoder's weights for another vocabulary.

    The vector of a word that is new is the mean of the known ones plus noise of standard deviation 0.05; its bias is
    the 10% quantile of the known biases.

    Args:
        weights: of a decoder with the vocabulary `known`: tensors (V, E) and (V,) among others, float32.
        known: vocabulary of the weights.
        wanted: vocabulary of the result, in any order.
        seed: for the noise.

    Returns:
        The same names; word tensors are (W, E) and (W,), the other tensors are those given.
    """
    rows = torch.tensor(known.encode(wanted.words))  # (W,), <unk> for a new word
    is_new = torch.tensor([word not in known for word in wanted.words])
    noise = torch.Generator().manual_seed(seed)
    carried = dict(weights)
    for name in WORD_TENSORS:
        if name not in weights:
            continue
        old = weights[name]
        learnt = old[len(SPECIAL_WORDS) :]
        new = old[rows]
        if old.dim() == 1:
            new[is_new] = learnt.quantile(_RARE)
        else:
            spread = _SPREAD * torch.randn(int(is_new.sum()), old.shape[1], generator=noise)
            new[is_new] = learnt.mean(dim=0) + spread
        carried[name] = new
    return carried
