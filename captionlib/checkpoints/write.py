"""Writes checkpoints, and adds to them what `jobs.quantize`, `jobs.train_detector` and `jobs.calibrate` have made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captionlib.checkpoints.eight_bits import compress
from captionlib.checkpoints.files import (
    CARD,
    COMPRESSED_FORMAT_VERSION,
    CONFIG,
    FORMAT_VERSION,
    INT8_ENCODER,
    VOCABULARY,
    WEIGHTS,
    fingerprint,
    read_json,
)
from captionlib.checkpoints.read import check_checkpoint
from captionlib.checkpoints.weights import check_finite, stored_tensors
from captionlib.confidence import Calibration
from captionlib.config import DetectorConfig, ModelConfig, SearchConfig, to_dict
from captionlib.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn


def save_checkpoint(
    directory: str | Path,
    captioner: nn.Module,
    model: ModelConfig,
    vocabulary: Vocabulary,
    *,
    search: SearchConfig | None = None,
    training: dict[str, Any] | None = None,
    card: str = "",
) -> None:
    """Write a captioner. Weights are rounded to float16, except tensors beyond its range; integer tensors are kept.

    Raises:
        UserError: a weight is infinite or NaN.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: _compact(name, value) for name, value in stored_tensors(captioner).items()}
    save_file(weights, directory / WEIGHTS)
    vocabulary.save(directory / VOCABULARY)
    (directory / CARD).write_text(card, encoding="utf-8")
    (directory / INT8_ENCODER).unlink(missing_ok=True)  # it would belong to the captioner that was saved here before
    settings = to_dict(model)
    config = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint(directory, {"model": settings}),
        "model": settings,
        "search": to_dict(search or SearchConfig()),
        "training": training or {},
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_int8_encoder(directory: str | Path, graph: bytes) -> None:
    """Add an encoder in 8-bit integers to a checkpoint, replacing an existing one."""
    directory = Path(directory)
    data = read_json(directory)
    (directory / INT8_ENCODER).write_bytes(graph)
    data["fingerprint"] = fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def add_detector(directory: str | Path, detector: nn.Module, config: DetectorConfig, weight: float) -> None:
    """Add a word detector to a checkpoint, replacing one that it may have.

    A calibration is removed, because it was fitted to other captions and other evidence.

    Args:
        detector: a `captionlib.word_detector.WordDetector` for the checkpoint's features and vocabulary.
        config: settings of the detector.
        weight: `detector_weight` of the checkpoint's search.

    Raises:
        UserError: a weight is infinite or NaN.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    data = read_json(directory)
    path = directory / WEIGHTS
    weights = {name: value for name, value in load_file(path).items() if not name.startswith("detector.")}
    weights |= {f"detector.{name}": _compact(name, value) for name, value in stored_tensors(detector).items()}
    _replace_weights(path, weights)
    data["model"]["detector"] = to_dict(config)
    data["search"]["detector_weight"] = weight
    data.pop("confidence", None)
    data["fingerprint"] = fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def compress_weights(directory: str | Path) -> tuple[int, int]:
    """Store the large matrices of a checkpoint's decoder as 8-bit integers (see `captionlib.checkpoints.eight_bits`).

    The encoder, and an encoder in 8-bit integers, stay as they are. A checkpoint that is compressed already, or that
    has no large matrix, is not changed.

    Returns:
        The bytes of model.safetensors before and after.

    Raises:
        CheckpointError: as `check_checkpoint`.
        UserError: a weight is infinite or NaN.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    check_checkpoint(directory)
    data = read_json(directory)
    path = directory / WEIGHTS
    before = path.stat().st_size
    weights = load_file(path)
    compressed = compress(weights)
    if compressed.keys() == weights.keys():
        return before, before
    _replace_weights(path, compressed)
    data["format"] = COMPRESSED_FORMAT_VERSION
    data["fingerprint"] = fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return before, path.stat().st_size


def add_confidence(directory: str | Path, calibration: Calibration) -> None:
    """Add a calibration to a checkpoint, replacing one that it may have."""
    directory = Path(directory)
    data = read_json(directory)
    data["confidence"] = to_dict(calibration)
    data["fingerprint"] = fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _replace_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors that were read from the same file. They may be a memory map of it, so it is not overwritten."""
    from safetensors.torch import save

    draft = path.with_name(f"{path.name}.draft")
    draft.write_bytes(save(weights))
    draft.replace(path)


def _compact(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.contiguous()
    check_finite(name, value)
    half = value.half()
    return (half if bool(half.isfinite().all()) else value).contiguous()
