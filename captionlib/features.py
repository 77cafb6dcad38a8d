"""Features on disk: what an encoder made of images once → arrays that a decoder trains on many times.

Parquet, a row per image, `features` a fixed-shape float16 tensor (N, D); the file's metadata says which encoder
and which preprocessing made them. Training opens them as one array in a memory-mapped file, so that every worker
of a machine shares the same pages and any image is one seek away.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.config import EncoderConfig, from_dict, to_dict

_METADATA_KEY = b"captionlib.features"


def feature_schema(encoder: EncoderConfig, fingerprint: str, extra: dict[str, Any] | None = None) -> pa.Schema:
    """The Arrow schema of a features file, the encoder's settings and fingerprint in its metadata.

    Columns: image_id int64, path string, features float16 tensor (N, D) or null, error string or null.
    """
    shape = (encoder.num_positions, encoder.feature_dim)
    metadata = {"encoder": to_dict(encoder), "fingerprint": fingerprint, **(extra or {})}
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("path", pa.string()),
            ("features", pa.list_(pa.float16(), shape[0] * shape[1])),
            ("error", pa.string()),
        ],
        metadata={_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )


@dataclass(frozen=True)
class FeatureStore:
    """The features of a set of images."""

    encoder: EncoderConfig
    """What made them."""
    fingerprint: str
    """Of the encoder's weights."""
    paths: list[str]
    """Each image's path; position in this list is position in `array`."""
    array: np.ndarray
    """(images, N, D) float16, memory-mapped."""

    def index_by_name(self) -> dict[str, int]:
        """File name → position. Datasets know their images by name, not by where they were when encoded.

        Raises:
            ValueError: two images share a name.
        """
        index = {os.path.basename(path): i for i, path in enumerate(self.paths)}
        if len(index) != len(self.paths):
            raise ValueError(f"{len(self.paths) - len(index)} images share their file name with another one")
        return index


def open_features(url: str, cache_dir: str | None = None) -> FeatureStore:
    """Open a folder of features files for random access.

    The first opening on a machine writes the array into `cache_dir` (default: ~/.cache/captionlib/features),
    once for all its workers; later ones map it. Images with an `error` are left out.

    Args:
        url: a local folder or an fsspec URL that holds `*.parquet`.

    Raises:
        ValueError: no features there, files of different encoders, or values that are not finite.
    """
    import fsspec
    from filelock import FileLock

    fs, root = fsspec.core.url_to_fs(url)
    if fs.isdir(f"{root}/features"):  # the output folder of jobs.extract_features
        root = f"{root}/features"
    files = sorted(f for f in fs.glob(f"{root}/*.parquet") if not os.path.basename(f).startswith(("_", ".")))
    if not files:
        raise ValueError(f"{url} holds no features (*.parquet): make them with python -m jobs.extract_features")
    listing = [(f, fs.size(f), str(fs.ukey(f))) for f in files]
    key = hashlib.sha256(json.dumps([url, listing]).encode()).hexdigest()[:24]
    folder = Path(cache_dir or "~/.cache/captionlib/features").expanduser() / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "meta.json").exists():  # written last
            _build_cache(fs, files, folder, url)
    meta = json.loads((folder / "meta.json").read_text())
    encoder = from_dict(EncoderConfig, meta["encoder"], "encoder.")
    shape = (len(meta["paths"]), encoder.num_positions, encoder.feature_dim)
    array = np.memmap(folder / "features.f16", dtype=np.float16, mode="r", shape=shape)
    return FeatureStore(encoder, meta["fingerprint"], meta["paths"], array)


def _build_cache(fs: Any, files: Sequence[str], folder: Path, url: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] | None = None
    paths: list[str] = []
    with (folder / "features.f16").open("wb") as out:
        for name in files:
            with fs.open(name, "rb") as stream:
                parquet = pq.ParquetFile(stream)
                metadata = (parquet.schema_arrow.metadata or {}).get(_METADATA_KEY)
                if metadata is None:
                    raise ValueError(f"{name} says nothing of its encoder: it was not written by jobs.extract_features")
                here = json.loads(metadata)
                if described is None:
                    described = here
                elif (here["encoder"], here["fingerprint"]) != (described["encoder"], described["fingerprint"]):
                    raise ValueError(f"{url} mixes features of different encoders: {name} differs from {files[0]}")
                for batch in parquet.iter_batches(256, columns=["path", "features"]):
                    column = batch.column("features")
                    good = column.is_valid()
                    values = column.filter(good).flatten().to_numpy(zero_copy_only=False).astype(np.float16)
                    names = batch.column("path").filter(good).to_pylist()
                    rows = values.reshape(len(names), -1)
                    bad = ~np.isfinite(rows.astype(np.float32).sum(axis=1))
                    if bad.any():
                        raise ValueError(f"{name}: the features of {names[int(bad.argmax())]} are not finite")
                    out.write(np.ascontiguousarray(rows).tobytes())
                    paths += names
    if described is None or not paths:
        raise ValueError(f"{url} holds no features: every one of its images has an error")
    meta = {"encoder": described["encoder"], "fingerprint": described["fingerprint"], "paths": paths}
    temporary = folder / "meta.json.tmp"
    temporary.write_text(json.dumps(meta))
    temporary.rename(folder / "meta.json")
