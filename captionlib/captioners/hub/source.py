"""Finds the files of a model: on the Hugging Face hub, in its cache on this machine, or in a folder.

Each machine downloads a model once: the cache of the hub (HF_HOME) locks each file, and all actors of a machine share
it. Tokens are read where the tools of the hub look for them (HF_TOKEN, `hf auth login`) and are never stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionlib.errors import UserError

CONFIG = "config.json"
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
_WEIGHTS = ("*.safetensors", "*.bin")  # only the first pattern that matches is downloaded
_INSIDE_FOLDERS = "*/*"  # subfolders contain the same weights for other frameworks
_INSTALL = "pip install 'captionlib[hub]'"


class ModelNotFound(UserError):
    """The files of a model are not available. The message states the reason and what to do."""


@dataclass(frozen=True)
class ModelSource:
    """The location of a model. It can be pickled."""

    name: str
    """NAME on the hub, or the absolute path of a folder."""
    commit: str | None
    """Commit on the hub; None for a folder."""
    fingerprint: str
    """The commit, or 16 hexadecimal digits that identify the files of the folder."""
    weights_bytes: int | None
    """Size of all weights in bytes; None if it is unknown before the download."""

    def __str__(self) -> str:
        return f"hf:{self.name}@{self.commit[:12]}" if self.commit else f"hf:{self.name}"

    def small_files(self) -> Path:
        """Return the folder with all files except the weights, on this machine.

        Raises:
            ModelNotFound: they no longer exist.
        """
        if self.commit is None:
            return Path(self.name)
        return _fetch(self.name, self.commit, _SMALL_FILES)

    def all_files(self) -> Path:
        """Return the folder with all files, on this machine, after downloading missing ones.

        Raises:
            ModelNotFound: they cannot be downloaded, or this machine does not see the folder.
        """
        if self.commit is None:
            if not os.path.isdir(self.name):
                raise ModelNotFound(
                    f"the machine {socket.gethostname()} does not see {self.name}: the model must be in a folder that "
                    "all machines share, or on the Hugging Face hub"
                )
            return Path(self.name)
        for weights in _WEIGHTS:
            folder = _fetch(self.name, self.commit, (*_SMALL_FILES, weights))
            if any(folder.glob(weights)):
                return folder
        raise ModelNotFound(f"hf:{self.name} has no weights that PyTorch reads ({' or '.join(_WEIGHTS)})")


def find(text: str, revision: str | None, *, hash_files: bool = True) -> ModelSource:
    """Find a model without downloading its weights.

    Args:
        text: NAME, NAME@REVISION, or a folder.
        revision: branch, tag or commit; None for that of `text`, or the main branch.
        hash_files: whether to compute the fingerprint of a folder; without it, the fingerprint is empty.

    Raises:
        ModelNotFound: there is no such model; the message states what to do.
        ModuleNotFoundError: an extra is not installed.
    """
    check_installed()
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _in_folder(folder, text, revision, hash_files=hash_files)
    name, at, named_revision = text.partition("@")
    if at and revision is not None and revision != named_revision:
        raise ModelNotFound(f"--revision {revision} is not that of hf:{text}: leave one out")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelNotFound(
            f"there is no folder {text}: hf: takes a folder with a model, or a name on the Hugging Face hub such as "
            "Salesforce/blip-image-captioning-base"
        )
    return _on_hub(name, named_revision if at else revision)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a settings file of the model; empty if it is missing or damaged."""
    try:
        stored = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def check_installed() -> None:
    """Check that the packages of `captionlib[hub]` are installed.

    Raises:
        ModuleNotFoundError: they are not; the message names the extra.
    """
    for package in ("transformers", "accelerate", "huggingface_hub"):
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise ModuleNotFoundError(
                f"models of the Hugging Face hub need the package {package}, which is not installed: {_INSTALL}"
            ) from error


def _in_folder(folder: Path, text: str, revision: str | None, *, hash_files: bool) -> ModelSource:
    if revision is not None:
        raise ModelNotFound(f"--revision {revision} is for models of the hub; {text} is a folder: leave it out")
    if "model_type" not in read_json(folder, CONFIG):
        raise ModelNotFound(
            f"the folder {text} holds no model in the form of the Hugging Face hub: there is no {CONFIG} with a "
            "model_type in it"
        )
    weights = next((found for kind in _WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    if not weights:
        raise ModelNotFound(f"the folder {text} holds no weights ({' or '.join(_WEIGHTS)})")
    small = [path for kind in _SMALL_FILES for path in sorted(folder.glob(kind))]
    fingerprint = _digest([*small, *weights]) if hash_files else ""
    return ModelSource(str(folder.resolve()), None, fingerprint, sum(path.stat().st_size for path in weights))


def _digest(files: list[Path]) -> str:
    """Return 16 hexadecimal digits that identify names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()[:16]


def _on_hub(name: str, revision: str | None) -> ModelSource:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    _quiet()
    try:
        found = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=30)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _explain(error, name, revision) from error
    except Exception as error:  # without a connection to the hub, files from an earlier download are used
        folder = _fetch(name, revision, _SMALL_FILES, reason=error)
        size = sum(path.stat().st_size for path in folder.glob(_WEIGHTS[0]))
        return ModelSource(name, folder.name, folder.name, size or None)
    files = {file.rfilename: file.size or 0 for file in found.siblings or () if "/" not in file.rfilename}
    sizes = [sum(size for file, size in files.items() if file.endswith(kind[1:])) for kind in _WEIGHTS]
    if CONFIG not in files or not any(sizes):
        raise ModelNotFound(
            f"hf:{name} is no model that transformers loads: it has no {CONFIG}, or no weights "
            f"({' or '.join(_WEIGHTS)})"
        )
    commit = str(found.sha)
    return ModelSource(name, commit, commit, next(filter(None, sizes)))


def _fetch(name: str, revision: str | None, patterns: tuple[str, ...], reason: Exception | None = None) -> Path:
    """Download files of a model to the cache of the hub.

    Args:
        reason: why the hub cannot be used; then only the cache is searched.
    """
    from huggingface_hub import snapshot_download

    _quiet()
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=_INSIDE_FOLDERS,
                local_files_only=reason is not None,
            )
        )
    except Exception as error:
        raise _explain(reason or error, name, revision) from error
    if not (folder / CONFIG).is_file():
        raise _explain(reason or FileNotFoundError(CONFIG), name, revision)
    return folder


def _explain(error: Exception, name: str, revision: str | None) -> ModelNotFound:
    """Describe why a model is not available, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.utils import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, GatedRepoError):
        return ModelNotFound(
            f"hf:{name} is gated: accept its conditions at {page}, and have the token of that account in HF_TOKEN "
            "(or run `hf auth login`) on every machine"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFound(
            f"the Hugging Face hub has no model {name}, or it is private: look at the name; for a private one have a "
            "token in HF_TOKEN (or run `hf auth login`) on every machine"
        )
    if type(error).__name__ == "RevisionNotFoundError":
        return ModelNotFound(f"hf:{name} has no revision {revision}: {page}/tree/main lists them")
    if isinstance(error, OfflineModeIsEnabled):
        return ModelNotFound(
            f"hf:{name} is not in the cache of this machine ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to "
            "fetch it: unset that, or fetch it beforehand with `hf download`"
        )
    return ModelNotFound(
        f"the Hugging Face hub cannot be reached ({_short(error)}), and hf:{name} is not in the cache of this machine "
        f"({constants.HF_HUB_CACHE}): look at the network, copy the cache from a machine that has the model and set "
        "HF_HOME, or give a folder with hf:FOLDER"
    )


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _quiet() -> None:
    """Switch off progress bars, which several actors would draw over each other."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
