"""Checks and reads checkpoints in a local folder."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captionlib.checkpoints.eight_bits import decompress
from captionlib.checkpoints.files import (
    CONFIG,
    INT8_ENCODER,
    VOCABULARY,
    WEIGHTS,
    CheckpointError,
    checkpoint_fingerprint,
    damaged,
    existing_file,
    read_json,
)
from captionlib.confidence import Calibration
from captionlib.config import ModelConfig, SearchConfig, from_dict
from captionlib.vocabulary import Vocabulary

if TYPE_CHECKING:  # the driver of a job reads checkpoints and should start without importing PyTorch
    from torch import Tensor


@dataclass(frozen=True)
class CheckpointConfig:
    """The contents of `config.json`."""

    model: ModelConfig
    search: SearchConfig
    """Search settings that its scores were reached with; the default for captioning."""
    training: dict[str, Any]
    """Training settings and scores as the training job recorded them."""
    confidence: Calibration | None = field(default=None, kw_only=True)
    """How the confidence of its captions is computed; None if `jobs.calibrate` has not calibrated it."""


@dataclass(frozen=True)
class Checkpoint(CheckpointConfig):
    """The contents of a checkpoint folder, ready to build the model."""

    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    """Parameters of a `Captioner`, float32."""
    fingerprint: str
    """Hash of everything that can change a caption: weights, vocabulary, model settings."""
    int8_encoder: Path | None = None
    """Graph of the encoder in 8-bit integers (see `captionlib.engines.quantization`); None if there is none."""

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the weights of the `encoder` or the `decoder`, with the parameter names of that module."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}


def check_checkpoint(directory: str | Path) -> None:
    """Check a checkpoint without loading it: files, version, settings, and the length of the weights file.

    Raises:
        CheckpointError: a file is wrong; the message names it and states what to do.
    """
    directory = Path(directory)
    read_config(directory)
    _read_vocabulary(directory)
    path = existing_file(directory, WEIGHTS)
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        header_size = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + header_size > size:
            raise damaged(path, f"it is cut short, at {size} bytes")
        try:
            header = json.loads(stream.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + header_size + max(ends)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise damaged(path, "it is no safetensors file") from error
    if size != expected:
        raise damaged(path, f"it has {size} bytes instead of {expected}")


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: as `check_checkpoint`, a file has changed since it was written, or 8-bit integers do not fit
            their scales.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    check_checkpoint(directory)
    fingerprint = checkpoint_fingerprint(directory)
    if read_json(directory).get("fingerprint", fingerprint) != fingerprint:
        raise damaged(directory, "its files are not those that were written together")
    try:
        stored = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise damaged(directory / WEIGHTS, str(error)) from error
    weights = decompress(stored, directory / WEIGHTS)
    return Checkpoint(
        **vars(read_config(directory)),
        vocabulary=_read_vocabulary(directory),
        weights={name: value.float() if value.is_floating_point() else value for name, value in weights.items()},
        fingerprint=fingerprint,
        int8_encoder=path if (path := directory / INT8_ENCODER).is_file() else None,
    )


def read_config(directory: str | Path) -> CheckpointConfig:
    """Read only the settings of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged or of another version.
    """
    path = Path(directory) / CONFIG
    data = read_json(Path(directory))
    try:
        return CheckpointConfig(
            model=from_dict(ModelConfig, data["model"], "model."),
            search=from_dict(SearchConfig, data["search"], "search."),
            training=data.get("training", {}),
            confidence=None
            if data.get("confidence") is None
            else from_dict(Calibration, data["confidence"], "confidence."),
        )
    except KeyError as error:
        raise damaged(path, f"{error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_vocabulary(directory: Path) -> Vocabulary:
    path = existing_file(directory, VOCABULARY)
    try:
        return Vocabulary.load(path)
    except ValueError as error:
        raise damaged(path, str(error)) from error
