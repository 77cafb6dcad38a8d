"""Reads files of features as named arrays, piece by piece: output of `jobs.extract_features`, or ready-made vectors.

Ready-made vectors are `.npy` (with the names in a `.txt` beside it, one per line), `.npz` (names under `names` or
`paths`) or Parquet with the columns `path` (or `name`) and `features`.

Shapes: I images, N positions, D feature width.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captionlib.config import EncoderConfig, FeatureKind, from_dict, to_dict
from captionlib.errors import UserError
from captionlib.storage.errors import StorageError, with_retries
from captionlib.storage.inputs import open_input, read
from captionlib.storage.paths import is_local
from captionlib.storage.read import input_filesystem

T = TypeVar("T")

METADATA_KEY = b"captionlib.features.store"
_BYTES_PER_NUMBER = 2  # float16
_NUMPY = (".npy", ".npz")
_NAMES = ("names", "paths")
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FeatureSource:
    """Features that can be read once, from the first to the last image."""

    encoder: EncoderConfig
    """The encoder that made them; of kind `vectors` if unknown."""
    fingerprint: str | None
    """Fingerprint of its weights; None if unknown."""
    pieces: Iterator[tuple[list[str], np.ndarray]]
    """Paths of images, and their features (I, N, D) of any float type."""


def feature_schema(encoder: EncoderConfig, fingerprint: str, extra: dict[str, Any] | None = None) -> pa.Schema:
    """Return the Arrow schema of a features file, with settings and fingerprint of the encoder in its metadata.

    Columns: image_id int64, path string, features binary or null, error string or null. The features are N * D float16
    in little-endian order: `numpy.frombuffer(value, "<f2").reshape(N, D)`. Binary values are used because Parquet would
    store a repetition level beside each number of a list.
    """
    metadata = {"encoder": to_dict(encoder), "fingerprint": fingerprint, **(extra or {})}
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("path", pa.string()),
            ("features", pa.binary(_BYTES_PER_NUMBER * encoder.num_positions * encoder.feature_dim)),
            ("error", pa.string()),
        ],
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()},
    )


def list_files(url: str) -> list[str]:
    """List the files with the features of a folder or file, in reading order.

    Args:
        url: absolute path or URL.

    Raises:
        UserError: there are none.
    """
    filesystem = input_filesystem(url)

    def ask(question: Callable[[str], T], path: str) -> T:
        return with_retries(lambda: question(path))

    if ask(filesystem.isfile, url):
        names = str(PurePosixPath(url).with_suffix(".txt")) if is_local(url) else f"{url.rpartition('.')[0]}.txt"
        return [url, names] if url.endswith(_NUMPY) and ask(filesystem.isfile, names) else [url]
    if ask(filesystem.isdir, f"{url}/features"):  # the output folder of jobs.extract_features
        url = f"{url}/features"
    found = [PurePosixPath(file).name for file in ask(filesystem.glob, f"{url}/*.parquet")]
    files = [f"{url}/{name}" for name in sorted(found) if not name.startswith(("_", "."))]
    if not files:
        raise UserError(
            f"{url} holds no features (*.parquet): make them with python -m jobs.extract_features, or give a "
            "ready-made .npy, .npz or .parquet file"
        )
    return files


def open_source(files: Sequence[str], encoder: EncoderConfig | None) -> FeatureSource:
    """Open features for reading.

    Args:
        files: result of `list_files`.
        encoder: encoder of ready-made features, if known.

    Raises:
        UserError: here or from `pieces`: a file has another format than stated, other features than the first file, or
            a different number of names and features.
        captionlib.storage.errors.StorageError: here or from `pieces`: the storage cannot be read.
    """
    if files[0].endswith(_NUMPY):
        return _open_numpy(files, encoder)
    return _open_parquet(files, encoder)


# ---- Parquet ----


def _open_parquet(files: Sequence[str], stated: EncoderConfig | None) -> FeatureSource:
    with open_input(files[0]) as stream:
        parquet = _parquet_file(stream, files[0])
        metadata = _metadata(parquet)
        if metadata is None:
            column = next(parquet.iter_batches(1, columns=["features"]), None)
            width = 0 if column is None else len(column.column(0)[0].as_py() or ())
            encoder = _described(files[0], (1, width), stated)
            return FeatureSource(encoder, None, _parquet_pieces(files, encoder, None))
    encoder = from_dict(EncoderConfig, metadata["encoder"], f"{files[0]}: encoder.")
    if stated is not None and stated != encoder:
        raise UserError(f"{files[0]} was made by {encoder.name}, not by {stated.name} as stated: leave that out")
    return FeatureSource(encoder, metadata["fingerprint"], _parquet_pieces(files, encoder, metadata))


def _parquet_pieces(
    files: Sequence[str], encoder: EncoderConfig, metadata: dict[str, Any] | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    width = encoder.num_positions * encoder.feature_dim
    for file in files:
        with open_input(file) as stream:
            parquet = _parquet_file(stream, file)
            here = _metadata(parquet)
            keys = ("encoder", "fingerprint")
            if (here and [here[key] for key in keys]) != (metadata and [metadata[key] for key in keys]):
                raise UserError(f"{file} and {files[0]} hold features of different encoders")
            name = "path" if "path" in parquet.schema_arrow.names else "name"
            for batch in parquet.iter_batches(_IMAGES_AT_ONCE, columns=[name, "features"]):
                batch = batch.filter(batch.column("features").is_valid())  # rows of failed images have no features
                if len(batch) == 0:
                    continue
                features = batch.column("features")
                if pa.types.is_fixed_size_binary(features.type):
                    values = np.frombuffer(b"".join(features.to_pylist()), "<f2")
                else:  # lists, as written by other programs or earlier versions
                    if pc.any(pc.not_equal(pc.list_value_length(features), width)).as_py():
                        raise UserError(f"{file}: expected {width} numbers per image, as many as the first image has")
                    values = features.flatten().to_numpy(zero_copy_only=False)
                shape = (len(batch), encoder.num_positions, encoder.feature_dim)
                yield batch.column(name).to_pylist(), values.reshape(shape)


def _parquet_file(stream: Any, file: str) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(stream)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is no Parquet file, or damaged: {error}") from error
    columns = parquet.schema_arrow.names
    if "features" not in columns or not {"path", "name"} & set(columns):
        raise UserError(f"{file} needs the columns path (or name) and features, and has {', '.join(columns)}")
    kind = parquet.schema_arrow.field("features").type
    if pa.types.is_fixed_size_binary(kind):
        stated = _metadata(parquet)
        if stated is None:
            raise UserError(f"{file}: features must be lists of floating-point numbers, these are {kind}")
        encoder = from_dict(EncoderConfig, stated["encoder"], "encoder.")
        if kind.byte_width != _BYTES_PER_NUMBER * encoder.num_positions * encoder.feature_dim:
            raise UserError(f"{file}: features have {kind.byte_width} bytes, which do not fit {encoder.name}")
        return parquet
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not (
        pa.types.is_floating(kind.value_type)
    ):
        raise UserError(f"{file}: features must be lists of floating-point numbers, these are {kind}")
    return parquet


def _metadata(parquet: pq.ParquetFile) -> dict[str, Any] | None:
    text = (parquet.schema_arrow.metadata or {}).get(METADATA_KEY)
    return None if text is None else dict(json.loads(text))


# ---- NumPy ----


def _open_numpy(files: Sequence[str], stated: EncoderConfig | None) -> FeatureSource:
    file = files[0]
    try:
        loaded = _load(file)
    except StorageError:
        raise
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is no array of numbers, or damaged: {error}") from error
    names = None
    if isinstance(loaded, dict):
        names = next((loaded.pop(key) for key in _NAMES if key in loaded), None)
        if len(loaded) != 1:
            raise UserError(
                f"{file} must hold one array of features beside the names, and holds {', '.join(loaded) or 'none'}"
            )
        (loaded,) = loaded.values()
    features: np.ndarray = loaded if loaded.ndim == 3 else loaded[:, np.newaxis] if loaded.ndim == 2 else loaded
    if features.ndim != 3 or features.dtype.kind != "f":
        raise UserError(
            f"{file}: expected floating-point numbers of shape (images, D) or (images, N, D), got {loaded.dtype} of "
            f"shape {loaded.shape}"
        )
    paths = _read_names(files, names)
    if len(paths) != len(features):
        raise UserError(f"{file} holds features of {len(features)} images, and there are {len(paths)} names")
    encoder = _described(file, features.shape[1:], stated)
    pieces = (
        (paths[start : start + _IMAGES_AT_ONCE], features[start : start + _IMAGES_AT_ONCE])
        for start in range(0, len(paths), _IMAGES_AT_ONCE)
    )
    return FeatureSource(encoder, None, pieces)


def _load(file: str) -> Any:
    """Load an array, or a dict of arrays from `.npz`. A local `.npy` is memory-mapped."""
    if file.endswith(".npy") and is_local(file):
        return np.load(file, mmap_mode="r")
    with open_input(file) as stream:
        loaded = np.load(stream)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded


def _read_names(files: Sequence[str], names: np.ndarray | None) -> list[str]:
    if names is not None:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.ravel().tolist()]
    if len(files) < 2:
        raise UserError(
            f"{files[0]} does not say which image is which: write the images' names, one per line, into "
            f"{PurePosixPath(files[0]).with_suffix('.txt').name} beside it"
        )
    return read(files[1]).decode("utf-8").splitlines()


def _described(file: str, shape: Sequence[int], stated: EncoderConfig | None) -> EncoderConfig:
    """Return the settings that stand for ready-made features of shape (N, D)."""
    positions, width = shape
    if positions < 1 or width < 1:
        raise UserError(f"{file} holds no features")
    if stated is None:
        kind: FeatureKind = "pooled" if positions == 1 else "grid"
        name = PurePosixPath(file).stem
        return EncoderConfig(kind="vectors", name=name, features=kind, num_positions=positions, feature_dim=width)
    if stated.num_positions * stated.feature_dim != positions * width or positions not in (1, stated.num_positions):
        raise UserError(
            f"{file} holds {positions} x {width} numbers per image, and {stated.name} makes "
            f"{stated.num_positions} x {stated.feature_dim}"
        )
    return stated
