"""Decoders: features (B, N, D) → log-probabilities of the next word; one table of kinds."""

from collections.abc import Callable

from torch import nn

from captionlib.config import DecoderConfig
from captionlib.decoders.base import Decoder, DecoderOutput, Memory, State
from captionlib.decoders.lstm_attention import LSTMAttentionDecoder

__all__ = ["DECODER_KINDS", "Decoder", "DecoderOutput", "Memory", "State", "build_decoder"]

DECODER_KINDS: dict[str, Callable[[DecoderConfig, int, int], nn.Module]] = {
    "lstm_attention": LSTMAttentionDecoder,
}
"""Kind → class, called with (config, feature_dim, vocabulary_size)."""


def build_decoder(config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> nn.Module:
    """A decoder with fresh weights.

    Raises:
        ValueError: the kind is unknown.
    """
    if config.kind not in DECODER_KINDS:
        raise ValueError(f"unknown kind of decoder {config.kind!r}; known: {', '.join(DECODER_KINDS)}")
    return DECODER_KINDS[config.kind](config, feature_dim, vocabulary_size)
