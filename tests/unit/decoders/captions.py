"""Small decoders of every kind, and captions of different lengths for them to learn or score."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from captionlib.config import DecoderConfig
from captionlib.decoders import Decoder, build_decoder
from captionlib.decoders.attention import ATTENTION_KINDS
from captionlib.vocabulary import BOS, EOS, PAD

NUM_WORDS, FEATURE_DIM, POSITIONS = 17, 10, 5

SMALL = DecoderConfig(
    projection_dim=16, hidden_dim=16, embedding_dim=12, attention_dim=14, num_heads=2, dropout=0.3, max_tokens=12
)
CONFIGS = {
    "lstm_init": replace(SMALL, kind="lstm_init"),
    **{f"lstm_attention-{kind}": replace(SMALL, kind="lstm_attention", attention=kind) for kind in ATTENTION_KINDS},  # type: ignore[arg-type]
    "lstm_attention-no-gate": replace(SMALL, gate=False, tie_weights=False),
    "lstm_attention-features-as-they-are": replace(SMALL, projection_dim=0),
    **{
        f"lstm_adaptive-{kind}": replace(SMALL, kind="lstm_adaptive", attention=kind)  # type: ignore[arg-type]
        for kind in ATTENTION_KINDS
        if kind != "multi_head"
    },
    "transformer": replace(SMALL, kind="transformer"),
    "transformer-untied": replace(SMALL, kind="transformer", tie_weights=False, num_layers=1),
}
KINDS = ("lstm_init", "lstm_attention-additive", "lstm_adaptive-additive", "transformer")

# Captions of three images as word ids; None is missing.
CAPTIONS: list[list[list[int] | None]] = [
    [[5, 6, 7], None, [8]],
    [[9, 4, 10, 11, 12, 5], [6, 6], []],
    [[4, 5, 4, 5], [13, 14, 15, 16, 4], None],
]


def small_decoder(name: str, seed: int = 0) -> Decoder:
    """In evaluation mode, with weights large enough for words to differ."""
    torch.manual_seed(seed)
    decoder = build_decoder(CONFIGS[name], FEATURE_DIM, NUM_WORDS).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder


def features(images: int = 3, seed: int = 1) -> Tensor:
    """(images, POSITIONS, FEATURE_DIM)."""
    return torch.randn(images, POSITIONS, FEATURE_DIM, generator=torch.Generator().manual_seed(seed))


def pad(captions: list[list[list[int] | None]]) -> Tensor:
    """(B, K, T) int64."""
    length = 2 + max(len(caption) for of_image in captions for caption in of_image if caption is not None)
    lines = [[[] if caption is None else [BOS, *caption, EOS] for caption in of_image] for of_image in captions]
    return torch.tensor([[line + [PAD] * (length - len(line)) for line in of_image] for of_image in lines])
