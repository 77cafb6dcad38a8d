"""Decoders: features (B, N, D) → log-probabilities of the next word; one table of kinds."""

from collections.abc import Callable

from captionlib.config import DecoderConfig
from captionlib.decoders.base import Decoder, DecoderOutput, Memory, State
from captionlib.decoders.lstm_adaptive import LSTMAdaptiveDecoder
from captionlib.decoders.lstm_attention import LSTMAttentionDecoder
from captionlib.decoders.lstm_init import LSTMInitDecoder
from captionlib.decoders.transformer import TransformerDecoder
from captionlib.errors import UserError

__all__ = ["DECODER_KINDS", "Decoder", "DecoderOutput", "Memory", "State", "build_decoder"]

DECODER_KINDS: dict[str, Callable[[DecoderConfig, int, int], Decoder]] = {
    "lstm_init": LSTMInitDecoder,
    "lstm_attention": LSTMAttentionDecoder,
    "lstm_adaptive": LSTMAdaptiveDecoder,
    "transformer": TransformerDecoder,
}
"""Kind → class, called with (config, feature_dim, vocabulary_size)."""


def build_decoder(config: DecoderConfig, feature_dim: int, vocabulary_size: int) -> Decoder:
    """Build a decoder with random weights.

    Raises:
        UserError: the kind is unknown, or its settings are incompatible.
    """
    if config.kind not in DECODER_KINDS:
        raise UserError(f"unknown kind of decoder {config.kind!r}; known: {', '.join(DECODER_KINDS)}")
    return DECODER_KINDS[config.kind](config, feature_dim, vocabulary_size)
