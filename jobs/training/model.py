"""Builds the network that is trained: a decoder, or an encoder and a decoder together."""

from __future__ import annotations

import torch

from captionlib.checkpoints import load_weights
from captionlib.decoders import Decoder, build_decoder
from captionlib.encoders import Encoder, build_encoder
from captionlib.errors import UserError
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.training.objects import ObjectsHead
from captionlib.vocabulary import BOS, EOS
from jobs.training.data import Prepared


def build_model(prepared: Prepared) -> Decoder:
    """Build the decoder, or encoder and decoder together, with the weights that the run starts from."""
    settings = prepared.settings
    decoder = build_decoder(settings.decoder, prepared.encoder.feature_dim, len(prepared.vocabulary))
    if prepared.decoder_weights is not None:
        load_weights(decoder, prepared.decoder_weights, settings.start_from or "")
    if not settings.from_images:
        return decoder
    encoder = starting_encoder(prepared)
    encoder.freeze_before(settings.encoder.train_from)
    objects = None
    if prepared.objects is not None:
        objects = ObjectsHead(prepared.encoder.feature_dim, len(prepared.objects.categories))
    return EncoderDecoder(encoder, decoder, objects)


def starting_encoder(prepared: Prepared) -> Encoder:
    """Build the encoder with the weights that the run starts from: those of a checkpoint or of the library."""
    encoder = build_encoder(prepared.encoder, pretrained=prepared.encoder_weights is None)
    if prepared.encoder_weights is not None:
        load_weights(encoder, prepared.encoder_weights, prepared.settings.encoder_checkpoint or "")
    return encoder


def check_model(prepared: Prepared) -> None:
    """Check that the decoder supports the settings.

    Raises:
        UserError: it does not; the message names the setting.
    """
    settings = prepared.settings
    decoder = build_decoder(settings.decoder, prepared.encoder.feature_dim, len(prepared.vocabulary)).eval()
    limit = decoder.max_tokens
    for name, value in (("training", settings.training.max_tokens), ("search", settings.search.max_tokens)):
        if limit is not None and value + 1 > limit:
            raise UserError(
                f"--{name}.max-tokens {value} exceeds the {limit - 1} words that this decoder can represent: "
                "lower it, or raise --decoder.max-tokens"
            )
    if settings.training.doubly_stochastic:
        features = torch.zeros(1, prepared.encoder.num_positions, prepared.encoder.feature_dim)
        if decoder(features, torch.tensor([[[BOS, EOS]]])).attention is None:
            raise UserError(
                f"--training.doubly-stochastic needs attention over the image, and {settings.decoder.kind} gives none: "
                "set it to 0"
            )
