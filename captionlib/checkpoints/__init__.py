"""Checkpoints: stores a captioner as a folder of plain files with everything that captioning needs.

    config.json        format version, model and search settings, training record
    vocabulary.json    the words
    model.safetensors  weights of encoder, decoder and word detector, float16; the matrices of the last two may be
                       8-bit integers
    encoder_int8.onnx  the encoder in 8-bit integers, if `jobs.quantize` has created it
    model_card.md      training data, recipe and scores

No file is a pickle, so loading a checkpoint of unknown origin cannot execute code.
"""

from captionlib.checkpoints.files import (
    CARD,
    CONFIG,
    INT8_ENCODER,
    VOCABULARY,
    WEIGHTS,
    CheckpointError,
    checkpoint_fingerprint,
)
from captionlib.checkpoints.locate import check_checkpoint_visible, resolve_checkpoint
from captionlib.checkpoints.publish import changed_copy, publish_checkpoint
from captionlib.checkpoints.read import Checkpoint, CheckpointConfig, check_checkpoint, load_checkpoint, read_config
from captionlib.checkpoints.weights import load_weights, weights_fingerprint
from captionlib.checkpoints.write import (
    add_confidence,
    add_detector,
    add_int8_encoder,
    compress_weights,
    save_checkpoint,
)

__all__ = [
    "CARD",
    "CONFIG",
    "INT8_ENCODER",
    "VOCABULARY",
    "WEIGHTS",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "add_confidence",
    "add_detector",
    "add_int8_encoder",
    "changed_copy",
    "check_checkpoint",
    "check_checkpoint_visible",
    "checkpoint_fingerprint",
    "compress_weights",
    "load_checkpoint",
    "load_weights",
    "publish_checkpoint",
    "read_config",
    "resolve_checkpoint",
    "save_checkpoint",
    "weights_fingerprint",
]
