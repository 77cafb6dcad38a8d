"""Loads the teachers of knowledge distillation, checks that they fit the student, and builds their decoders in a
worker.
"""

from __future__ import annotations

from collections.abc import Sequence

from captionlib.checkpoints import Checkpoint, load_checkpoint, load_weights, resolve_checkpoint, weights_fingerprint
from captionlib.config import EncoderConfig
from captionlib.decoders import Decoder, build_decoder
from captionlib.encoders import Encoder, build_encoder
from captionlib.errors import UserError
from captionlib.training.distillation import Teachers
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.vocabulary import Vocabulary


def load_teacher(
    source: str, vocabulary: Vocabulary, encoder: EncoderConfig, fingerprint: str | None, *, on_images: bool
) -> Checkpoint:
    """Load a captioner with the student's vocabulary and inputs.

    Args:
        source: as for `captionlib.checkpoints.resolve_checkpoint`.
        vocabulary: vocabulary of the student.
        encoder: encoder of the student.
        fingerprint: fingerprint of the weights of that encoder; None if unknown.
        on_images: whether both run on images, each with its own encoder.

    Raises:
        UserError: the teacher does not fit; the message states the difference.
    """
    checkpoint = load_checkpoint(resolve_checkpoint(source))
    if checkpoint.vocabulary.words != vocabulary.words:
        raise UserError(
            f"the teacher {source} has a vocabulary of {len(checkpoint.vocabulary):,} words, not the "
            f"{len(vocabulary):,} of this run: train it on the same captions, with the same --training.min-count"
        )
    theirs = checkpoint.model.encoder
    if on_images:
        # Images are scaled once for all teachers; each teacher normalises the pixels itself.
        fits = theirs.kind != "vectors" and theirs.preprocessing.size == encoder.preprocessing.size
    else:
        fits = theirs == encoder
    if not fits:
        raise UserError(
            f"the teacher {source} uses {theirs.name} at {theirs.preprocessing.size} pixels, and the student uses "
            f"{encoder.name} at {encoder.preprocessing.size}: "
            + ("they need the same size" if on_images else "they need the same features")
        )
    if fingerprint is not None and weights_fingerprint(_encoder(checkpoint, source)) != fingerprint:
        raise UserError(
            f"the teacher {source} was trained on features of other weights of {encoder.name} than these: extract "
            f"the features with --encoder.checkpoint {source}"
        )
    return checkpoint


def build_teachers(checkpoints: Sequence[Checkpoint], *, on_images: bool) -> Teachers | None:
    """Build the teachers of a decoder; None if there are none.

    Args:
        on_images: whether teachers run on images, each with the encoder of its own checkpoint.
    """
    decoders: list[Decoder] = []
    for checkpoint in checkpoints:
        model = checkpoint.model
        decoder = build_decoder(model.decoder, model.encoder.feature_dim, len(checkpoint.vocabulary))
        load_weights(decoder, checkpoint.part("decoder"), "a teacher")
        decoders.append(EncoderDecoder(_encoder(checkpoint, "a teacher"), decoder) if on_images else decoder)
    return Teachers(decoders) if decoders else None


def _encoder(checkpoint: Checkpoint, source: str) -> Encoder:
    encoder = build_encoder(checkpoint.model.encoder, pretrained=False)
    load_weights(encoder, checkpoint.part("encoder"), source)
    return encoder
