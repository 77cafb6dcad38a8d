"""Checkpoints: a captioner ↔ a directory of plain files that says everything needed to caption.

    config.json        format version, model and search settings, how it was trained
    vocabulary.json    the words
    model.safetensors  encoder and decoder weights, float16
    model_card.md      on what, how and how well it was trained

No pickle: a checkpoint from a stranger is data, not a program.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captionlib.config import ModelConfig, SearchConfig, from_dict, to_dict
from captionlib.vocabulary import Vocabulary

FORMAT_VERSION = 1
CONFIG, VOCABULARY, WEIGHTS, CARD = "config.json", "vocabulary.json", "model.safetensors", "model_card.md"
DEFAULT_CHECKPOINT = Path(__file__).parent / "pretrained" / "default"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another version. The message names the file and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint directory holds, ready to build the model from."""

    model: ModelConfig
    search: SearchConfig
    """The decoding that its scores were reached with, and the default."""
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    """Parameters of a `Captioner`, float32."""
    fingerprint: str
    """Changes with anything that can change a caption: weights, vocabulary, model settings."""
    training: dict[str, Any] = field(default_factory=dict)


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
    """Write a captioner. Weights are rounded to float16, integers are kept."""
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in captioner.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, directory / WEIGHTS)
    vocabulary.save(directory / VOCABULARY)
    config = {
        "format": FORMAT_VERSION,
        "model": to_dict(model),
        "search": to_dict(search or SearchConfig()),
        "training": training or {},
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (directory / CARD).write_text(card)


def check_checkpoint(directory: str | Path) -> None:
    """Look at a checkpoint without loading it: files, version, settings, and the length of the weights' file.

    Raises:
        CheckpointError: what is wrong with which file, and what to do.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint at {directory}: give the directory that holds {CONFIG} and {WEIGHTS}")
    _read_config(directory)
    _read_vocabulary(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {WEIGHTS}: copy the whole checkpoint directory")
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        header_size = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + header_size > size:
            raise CheckpointError(f"{path} is truncated ({size} bytes): copy the checkpoint again")
        try:
            header = json.loads(stream.read(header_size))
            expected = 8 + header_size + max(
                entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: copy the checkpoint again") from error
    if size != expected:
        raise CheckpointError(f"{path} has {size} bytes instead of {expected}: copy the checkpoint again")


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: as `check_checkpoint`.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    check_checkpoint(directory)
    config = _read_config(directory)
    weights = load_file(directory / WEIGHTS)
    return Checkpoint(
        model=config["model"],
        search=config["search"],
        vocabulary=_read_vocabulary(directory),
        weights={name: value.float() if value.is_floating_point() else value for name, value in weights.items()},
        fingerprint=checkpoint_fingerprint(directory),
        training=config["training"],
    )


def checkpoint_fingerprint(directory: str | Path) -> str:
    """16 hexadecimal digits over weights, vocabulary and model settings; decoding settings don't count."""
    directory = Path(directory)
    digest = hashlib.sha256(json.dumps(to_dict(_read_config(directory)["model"]), sort_keys=True).encode())
    for name in (VOCABULARY, WEIGHTS):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()[:16]


def weights_fingerprint(module: nn.Module) -> str:
    """16 hexadecimal digits over a module's weights, rounded to float16 as checkpoints hold them."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update((value.half() if value.is_floating_point() else value).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy weights into a module that its checkpoint's settings describe.

    Raises:
        CheckpointError: a parameter is missing, left over, or of another shape.
    """
    own = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(own - set(weights)), sorted(set(weights) - own)
    if missing or extra:
        raise CheckpointError(
            f"{where}: the weights do not fit the settings (missing: {missing[:3]}, not expected: {extra[:3]}): "
            "it was written by another version, or edited"
        )
    try:
        module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: the weights do not fit the settings: {error}") from error


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {CONFIG}: it is not a checkpoint, or not all of one")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy the checkpoint again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of format {version!r} and this version reads format {FORMAT_VERSION}: "
            "use the project's version that wrote it, or train anew"
        )
    try:
        return {
            "model": from_dict(ModelConfig, data["model"], "model."),
            "search": from_dict(SearchConfig, data["search"], "search."),
            "training": data.get("training", {}),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_vocabulary(directory: Path) -> Vocabulary:
    path = directory / VOCABULARY
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {VOCABULARY}: copy the whole checkpoint directory")
    try:
        return Vocabulary.load(path)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy the checkpoint again") from error
