"""What is trained: settings and the weights to start from → a decoder, or an encoder and a decoder as one."""

from __future__ import annotations

from torch import Tensor

from captionlib.checkpoints import load_weights
from captionlib.decoders import Decoder, build_decoder
from captionlib.encoders import build_encoder
from captionlib.training.from_pixels import FromPixels
from jobs.train_data import Prepared


def build_model(prepared: Prepared) -> Decoder:
    """What is trained: a decoder, or an encoder and a decoder as one, with the weights that the run starts from."""
    settings = prepared.settings
    decoder = build_decoder(settings.decoder, prepared.encoder.feature_dim, len(prepared.vocabulary))
    if prepared.start is not None:
        assert settings.start_from is not None
        load_weights(decoder, part_of(prepared.start, "decoder."), settings.start_from)
    if not settings.from_images:
        return decoder
    encoder = build_encoder(prepared.encoder, pretrained=prepared.start is None)
    if prepared.start is not None:
        load_weights(encoder, part_of(prepared.start, "encoder."), settings.start_from or "")
    encoder.freeze_before(settings.encoder.train_from)
    return FromPixels(encoder, decoder)


def part_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A captioner's weights of its encoder (`encoder.`) or decoder (`decoder.`), named as these name them."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
