"""Stored features: arrays made once by an encoder, on which a decoder is trained many times.

Training opens them as one memory-mapped array, so that all workers of a machine share the same pages and access any
image directly. `captionlib.features.files` reads the files.

Shapes: I images, N positions, D feature width.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from captionlib import cache
from captionlib.config import EncoderConfig, from_dict, to_dict
from captionlib.errors import UserError
from captionlib.features.files import FeatureSource, feature_schema, list_files, open_source
from captionlib.storage import inputs
from captionlib.storage.folder import Folder

__all__ = ["FeatureStore", "feature_schema", "open_features"]

_ARRAY, _META = "features.f16", "meta.json"


@dataclass(frozen=True)
class FeatureStore:
    """The features of a set of images."""

    encoder: EncoderConfig
    """The encoder that made them; of kind `vectors` if unknown."""
    fingerprint: str | None
    """Fingerprint of its weights; None if unknown."""
    paths: list[str]
    """Path of each image; its index is the image's position in `array`."""
    array: np.ndarray
    """(I, N, D) float16, memory-mapped."""

    def index_by_name(self) -> dict[str, int]:
        """Map file names to positions. Datasets identify images by name, not by their path at the time of encoding.

        Raises:
            UserError: two images share a name (`positions` can distinguish them by their folders).
        """
        index = {PurePosixPath(path).name: i for i, path in enumerate(self.paths)}
        for i, path in enumerate(self.paths):
            other = index[PurePosixPath(path).name]
            if other != i:
                raise UserError(f"{path} and {self.paths[other]} share their file name")
        return index

    def positions(self, paths: Sequence[str]) -> np.ndarray:
        """Return the positions of images, (I,) int64, found by file name and, among equal names, by folders.

        Raises:
            UserError: images have no features, or a path is ambiguous.
        """
        by_name = defaultdict(list)
        for i, path in enumerate(self.paths):
            by_name[PurePosixPath(path).name].append(i)
        missing = [path for path in paths if PurePosixPath(path).name not in by_name]
        if missing:
            raise UserError(f"{len(missing)} of {len(paths)} images have no features: {', '.join(missing[:3])}")
        return np.array([self._closest(path, by_name[PurePosixPath(path).name]) for path in paths], dtype=np.int64)

    def _closest(self, path: str, candidates: list[int]) -> int:
        if len(candidates) == 1:
            return candidates[0]
        shared = [_shared_parts(path, self.paths[i]) for i in candidates]
        best = [i for i, length in zip(candidates, shared, strict=True) if length == max(shared)]
        if len(best) > 1:
            raise UserError(f"{path} may be {self.paths[best[0]]} or {self.paths[best[1]]}: name it with its folder")
        return best[0]


def open_features(
    url: str, cache_dir: str | Path | None = None, *, encoder: EncoderConfig | None = None
) -> FeatureStore:
    """Open features for random access.

    The first call on a machine writes the array to `cache_dir` for all its workers; later calls map it. Images with an
    `error` are omitted.

    Args:
        url: folder written by `jobs.extract_features`, or a ready-made `.npy`, `.npz` or `.parquet` file; local or
            an fsspec URL.
        cache_dir: default: `features` in $CAPTIONLIB_CACHE (~/.cache/captionlib).
        encoder: encoder of ready-made features, if known, so that the captioner can caption photos.

    Raises:
        UserError: there are no features, or they have different formats or encoders, or values that are not finite.
        captionlib.storage.errors.StorageError: the storage failed while the features were read.
        captionlib.cache.CacheError: the cache cannot be written, or its disk is full.
    """
    try:
        files = list_files(Folder.of(url).url)
        state = [(file, inputs.version(file)) for file in files]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the features {url} could not be read: {error}") from error
    source = cache.digest(url, encoder and to_dict(encoder))
    folder = Path(cache_dir).expanduser() if cache_dir else cache.cache_folder("features")
    target = folder / f"{source}-{cache.digest(state)}"
    store = _map(target)  # tried before taking the lock, because a cache prepared elsewhere may be read-only
    if store is not None:
        return store
    with cache.lock(folder / f"{source}.lock"):
        if _map(target) is None:
            for outdated_or_damaged in folder.glob(f"{source}-*"):
                shutil.rmtree(outdated_or_damaged, ignore_errors=True)
            _write(open_source(files, encoder), target, url)
        store = _map(target)
    assert store is not None, f"{target} was written and cannot be read"
    return store


def _map(folder: Path) -> FeatureStore | None:
    """Map the files that `_write` wrote; None if they are missing or incomplete."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        encoder = from_dict(EncoderConfig, meta["encoder"], "encoder.")
        shape = (len(meta["paths"]), encoder.num_positions, encoder.feature_dim)
        array = np.memmap(folder / _ARRAY, dtype=np.float16, mode="r", shape=shape)
        whole = (folder / _ARRAY).stat().st_size == array.nbytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return FeatureStore(encoder, meta["fingerprint"], meta["paths"], array) if whole else None


def _write(source: FeatureSource, target: Path, url: str) -> None:
    paths: list[str] = []
    with cache.publish(target) as draft:
        with (draft / _ARRAY).open("wb") as out:
            for names, features in source.pieces:
                with np.errstate(over="ignore"):
                    rows = np.ascontiguousarray(features, dtype=np.float16)
                finite = np.isfinite(rows).all(axis=(1, 2))
                if not finite.all():
                    raise UserError(
                        f"{url}: the features of {names[int(finite.argmin())]} are not finite, or beyond float16"
                    )
                out.write(rows.tobytes())
                paths += names
        if not paths:
            raise UserError(f"{url} holds no features: every one of its images has an error")
        meta: dict[str, Any] = {
            "encoder": to_dict(source.encoder),
            "fingerprint": source.fingerprint,
            "paths": paths,
        }
        (draft / _META).write_text(json.dumps(meta), encoding="utf-8")


def _shared_parts(one: str, other: str) -> int:
    """Count the trailing components that two paths have in common."""
    pairs = zip(reversed(PurePosixPath(one).parts), reversed(PurePosixPath(other).parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
