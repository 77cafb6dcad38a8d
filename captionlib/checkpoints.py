"""Checkpoints: stores a captioner as a folder of plain files with everything that captioning needs.

    config.json        format version, model and search settings, training record
    vocabulary.json    the words
    model.safetensors  encoder and decoder weights, float16
    encoder_int8.onnx  the encoder in 8-bit integers, if `jobs.quantize` has created it
    model_card.md      training data, recipe and scores

No file is a pickle, so loading a checkpoint of unknown origin cannot execute code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captionlib import cache
from captionlib.confidence import Calibration
from captionlib.config import ModelConfig, SearchConfig, from_dict, to_dict
from captionlib.errors import UserError
from captionlib.vocabulary import Vocabulary

if TYPE_CHECKING:  # a job's driver looks at checkpoints, and should not wait for PyTorch
    from torch import Tensor, nn

FORMAT_VERSION = 2
CONFIG, VOCABULARY, WEIGHTS, CARD = "config.json", "vocabulary.json", "model.safetensors", "model_card.md"
INT8_ENCODER = "encoder_int8.onnx"
DEFAULT_CHECKPOINT = Path(__file__).parent / "pretrained" / "default"
"""The checkpoint that comes with the project."""

# Batch norm counts its batches to average over all of them, which no network here does.
_NOT_STORED = "num_batches_tracked"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another version. The message names the file and what to do."""


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


# ---- writing ----


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
    weights = {name: _compact(name, value) for name, value in _stored(captioner).items()}
    save_file(weights, directory / WEIGHTS)
    vocabulary.save(directory / VOCABULARY)
    (directory / CARD).write_text(card, encoding="utf-8")
    (directory / INT8_ENCODER).unlink(missing_ok=True)  # of another captioner, that lay here before
    settings = to_dict(model)
    config = {
        "format": FORMAT_VERSION,
        "fingerprint": _fingerprint(directory, {"model": settings}),
        "model": settings,
        "search": to_dict(search or SearchConfig()),
        "training": training or {},
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_int8_encoder(directory: str | Path, graph: bytes) -> None:
    """Add an encoder in 8-bit integers to a checkpoint, replacing an existing one."""
    directory = Path(directory)
    data = _read_json(directory)
    (directory / INT8_ENCODER).write_bytes(graph)
    data["fingerprint"] = _fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def add_confidence(directory: str | Path, calibration: Calibration) -> None:
    """Add a calibration to a checkpoint, replacing one that it may have."""
    directory = Path(directory)
    data = _read_json(directory)
    data["confidence"] = to_dict(calibration)
    data["fingerprint"] = _fingerprint(directory, data)
    (directory / CONFIG).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _compact(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.contiguous()
    if not bool(value.isfinite().all()):
        raise UserError(f"the weights {name} are not finite: take an earlier state of the training")
    half = value.half()
    return (half if bool(half.isfinite().all()) else value).contiguous()


def _stored(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if not name.endswith(_NOT_STORED)}


# ---- finding ----


def resolve_checkpoint(source: str | Path | None = None) -> Path:
    """Return the local folder of a checkpoint; a remote one is downloaded once.

    Args:
        source: a folder; an fsspec URL such as s3://bucket/run/best; or None or "default" for the checkpoint that comes
            with the project. Downloads are stored in $CAPTIONLIB_CACHE (default: ~/.cache/captionlib) and renewed when
            the
            source changes.

    Raises:
        CheckpointError: there is no checkpoint, or it could not be downloaded.
        captionlib.cache.CacheError: the cache cannot be written.
    """
    if source is None or source == "default":
        if not (DEFAULT_CHECKPOINT / CONFIG).is_file():
            raise CheckpointError(
                f"the checkpoint that ships with the project is not at {DEFAULT_CHECKPOINT}: install the project "
                "again, or give the directory of another checkpoint"
            )
        return DEFAULT_CHECKPOINT
    if isinstance(source, Path) or "://" not in source:
        return Path(source).expanduser()
    if source.startswith("file://"):
        return Path(source.removeprefix("file://"))
    return _fetch(source)


def check_checkpoint_visible(source: str) -> None:
    """Whether this machine, one of several, sees a checkpoint in a folder.

    Raises:
        UserError: it does not.
    """
    if source != "default" and "://" not in source and not os.path.isdir(source):
        raise UserError(
            f"the machine {socket.gethostname()} does not see {source}: the checkpoint must be in a folder that all "
            "machines share, or at a URL"
        )


def _fetch(url: str) -> Path:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()  # what an earlier look saw may have changed
        names = [os.path.basename(item["name"]) for item in fs.ls(root, detail=True) if item["type"] == "file"]
        names = [name for name in (CONFIG, VOCABULARY, WEIGHTS, INT8_ENCODER, CARD) if name in names]
        state = [(name, fs.ukey(f"{root}/{name}")) for name in names]  # of ETags, in an object store
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {url}: there is nothing") from error
    except Exception as error:  # every store has its own for a wrong key, host or protocol
        raise CheckpointError(f"the checkpoint {url} could not be read: {error}") from error
    if CONFIG not in names:
        raise CheckpointError(f"no checkpoint at {url}: it holds no {CONFIG}")
    target = cache.cache_folder("checkpoints") / cache.digest(url, state)
    if target.is_dir():
        return target
    with cache.publish(target) as draft:
        for name in names:
            try:
                fs.get_file(f"{root}/{name}", str(draft / name))
            except Exception as error:
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise  # this disk, not that store
                raise CheckpointError(f"{url}/{name} could not be fetched: {error}") from error
        check_checkpoint(draft)
    return target


# ---- reading ----


def check_checkpoint(directory: str | Path) -> None:
    """Check a checkpoint without loading it: files, version, settings, and the length of the weights file.

    Raises:
        CheckpointError: a file is wrong; the message names it and states what to do.
    """
    directory = Path(directory)
    read_config(directory)
    _read_vocabulary(directory)
    path = _file(directory, WEIGHTS)
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        header_size = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + header_size > size:
            raise _damaged(path, f"it is cut short, at {size} bytes")
        try:
            header = json.loads(stream.read(header_size))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + header_size + max(ends)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _damaged(path, "it is no safetensors file") from error
    if size != expected:
        raise _damaged(path, f"it has {size} bytes instead of {expected}")


def load_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: as `check_checkpoint`, or a file has changed since it was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    check_checkpoint(directory)
    fingerprint = checkpoint_fingerprint(directory)
    if _read_json(directory).get("fingerprint", fingerprint) != fingerprint:
        raise _damaged(directory, "its files are not those that were written together")
    try:
        weights = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise _damaged(directory / WEIGHTS, str(error)) from error
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
    data = _read_json(Path(directory))
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
        raise _damaged(path, f"{error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def checkpoint_fingerprint(directory: str | Path) -> str:
    """Return 16 hexadecimal digits that identify weights, vocabulary and model settings, but not search settings."""
    return _fingerprint(Path(directory), _read_json(Path(directory)))


def weights_fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that identify a module's weights, rounded to float16 as in checkpoints."""
    digest = hashlib.sha256()
    for name, value in sorted(_stored(module).items()):
        digest.update(name.encode())
        digest.update((value.half() if value.is_floating_point() else value).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy weights into a module that its checkpoint's settings describe.

    Raises:
        CheckpointError: a parameter is missing, left over, or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in _stored(module).items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    other = [f"{name} {given[name]} instead of {own[name]}" for name in own if given.get(name, own[name]) != own[name]]
    differences = {"missing": missing, "left over": extra, "of another shape": other}
    found = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in differences.items() if names)
    if found:
        raise CheckpointError(
            f"{where}: the weights do not fit its settings and vocabulary ({found}): it was edited, or put together "
            "from several checkpoints; copy it again as a whole"
        )
    module.load_state_dict(weights, strict=False)


def _fingerprint(directory: Path, config: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config.get("model"), sort_keys=True).encode())
    if config.get("confidence") is not None:
        digest.update(json.dumps(config["confidence"], sort_keys=True).encode())
    for name in (VOCABULARY, WEIGHTS):
        digest.update(_file(directory, name).read_bytes())
    if (directory / INT8_ENCODER).is_file():
        digest.update((directory / INT8_ENCODER).read_bytes())
    return digest.hexdigest()[:16]


def _read_json(directory: Path) -> dict[str, Any]:
    path = _file(directory, CONFIG)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"it is no checkpoint's {CONFIG}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of format {version!r} and this version of the project reads format {FORMAT_VERSION}: "
            "use the version that wrote it, or train anew"
        )
    return dict(data)


def _read_vocabulary(directory: Path) -> Vocabulary:
    path = _file(directory, VOCABULARY)
    try:
        return Vocabulary.load(path)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _file(directory: Path, name: str) -> Path:
    path = directory / name
    if not directory.is_dir():
        raise CheckpointError(f"no checkpoint at {directory}: give the directory that holds {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no {name}: it is no checkpoint, or not all of one")
    return path


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({what}): copy the checkpoint again")
