"""Features: what the job wrote and what others made, found by name; caches that are damaged, shared or read-only."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captionlib.cache import CacheError
from captionlib.config import EncoderConfig
from captionlib.features import store as features_module
from captionlib.features.store import FeatureStore, feature_schema, open_features

ENCODER = EncoderConfig(kind="efficientnet_lite", num_positions=2, feature_dim=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def values(count: int, start: int = 0) -> np.ndarray:
    """(count, 2, 3): image i holds the numbers 10 i, 10 i + 1, ..."""
    return (10 * np.arange(start, start + count)[:, None] + np.arange(6)).reshape(count, 2, 3).astype(np.float32)


def write_job(folder: Path, name: str, start: int = 0, count: int = 4, failed: int | None = None, **other: Any) -> None:
    """A file as the extraction job writes it."""
    rows = [
        {
            "image_id": i,
            "path": f"photos/{i}.jpg",
            "features": None if i == failed else values(1, i).astype(np.float16).tobytes(),
            "error": "NotAnImage" if i == failed else None,
        }
        for i in range(start, start + count)
    ]
    schema = feature_schema(other.get("encoder", ENCODER), other.get("fingerprint", "f00"))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)


# ---- what the job wrote ----


@pytest.mark.parametrize("inner", ["features", "."])
def test_a_folder_of_the_job(tmp_path: Path, inner: str) -> None:
    write_job(tmp_path / "out" / inner, "b.parquet", start=4)
    write_job(tmp_path / "out" / inner, "a.parquet", failed=1)
    (tmp_path / "out" / inner / "_half.parquet").write_bytes(b"x")
    store = open_features(str(tmp_path / "out"))
    assert store.encoder == ENCODER
    assert store.fingerprint == "f00"
    assert store.paths == [f"photos/{i}.jpg" for i in (0, 2, 3, 4, 5, 6, 7)]
    assert store.array.shape == (7, 2, 3)
    assert store.array.dtype == np.float16
    assert store.array[store.index_by_name()["5.jpg"]].tolist() == [[50, 51, 52], [53, 54, 55]]


def test_files_of_different_encoders(tmp_path: Path) -> None:
    write_job(tmp_path, "a.parquet")
    write_job(tmp_path, "b.parquet", fingerprint="f01")
    with pytest.raises(ValueError, match=r"b\.parquet and .*a\.parquet hold features of different encoders"):
        open_features(str(tmp_path))
    with pytest.raises(ValueError, match="was made by efficientnet_lite0, not by other as stated"):
        open_features(str(tmp_path), encoder=EncoderConfig(name="other"))


def test_no_features(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no features \(\*\.parquet\): make them with python -m jobs"):
        open_features(str(tmp_path))
    write_job(tmp_path, "a.parquet", count=1, failed=0)
    with pytest.raises(ValueError, match="every one of its images has an error"):
        open_features(str(tmp_path))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file"):
        open_features(str(tmp_path))


# ---- ready-made ----


def test_npy_with_names_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", values(3).reshape(3, 6))
    (tmp_path / "mine.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    store = open_features(str(tmp_path / "mine.npy"))
    assert store.encoder == EncoderConfig(
        kind="vectors", name="mine", features="pooled", feature_dim=6, num_positions=1
    )
    assert store.fingerprint is None
    assert store.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert store.array[1].tolist() == [[10, 11, 12, 13, 14, 15]]


@pytest.mark.parametrize("key", ["names", "paths"])
@pytest.mark.parametrize("kind", [str, bytes])
def test_npz(tmp_path: Path, key: str, kind: type) -> None:
    names = np.array(["a.jpg", "b.jpg"]).astype("U" if kind is str else "S")
    np.savez(tmp_path / "mine.npz", whatever=values(2), **{key: names})  # type: ignore[arg-type]
    store = open_features(str(tmp_path / "mine.npz"))
    assert store.paths == ["a.jpg", "b.jpg"]
    assert store.encoder.features == "grid"
    np.testing.assert_array_equal(store.array, values(2))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 6), pa.large_list(pa.float16())])
@pytest.mark.parametrize("column", ["path", "name"])
def test_parquet_of_others(tmp_path: Path, kind: pa.DataType, column: str) -> None:
    vectors = values(3).reshape(3, 6).astype(np.float16).tolist()
    table = pa.table({column: ["a", "b", "c"], "features": pa.array(vectors, kind)})
    pq.write_table(table, tmp_path / "mine.parquet")
    store = open_features(str(tmp_path / "mine.parquet"))
    assert store.encoder.kind == "vectors"
    assert store.paths == ["a", "b", "c"]
    np.testing.assert_array_equal(store.array, values(3).reshape(3, 1, 6))


def test_the_encoder_that_made_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", f=values(2), names=["a", "b"])
    stated = EncoderConfig(kind="torchvision", name="inception_v3", num_positions=2, feature_dim=3)
    assert open_features(str(tmp_path / "mine.npz"), encoder=stated).encoder == stated
    assert open_features(str(tmp_path / "mine.npz")).encoder.kind == "vectors"
    other = EncoderConfig(name="inception_v3", num_positions=1, feature_dim=2048)
    with pytest.raises(ValueError, match="holds 2 x 3 numbers per image, and inception_v3 makes 1 x 2048"):
        open_features(str(tmp_path / "mine.npz"), encoder=other)


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


NAN = values(3)
NAN[2, 1, 1] = np.nan
HUGE = values(3)
HUGE[1] = 1e5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", npy(values(3)), "does not say which image is which: write the images' names.* into a.txt"),
        ("a.npz", npz(f=values(3)), "does not say which image is which"),
        ("a.npz", npz(f=values(3), names=["a", "b"]), "holds features of 3 images, and there are 2 names"),
        ("a.npz", npz(f=values(3), g=values(3), names=["a"] * 3), "must hold one array .* and holds f, g"),
        ("a.npz", npz(names=["a"]), "and holds none"),
        ("a.npz", npz(f=NAN, names=["a", "b", "c"]), r"a\.npz: the features of c are not finite"),
        ("a.npz", npz(f=HUGE, names=["a", "b", "c"]), r"a\.npz: the features of b are not finite, or beyond float16"),
        ("a.npz", npz(f=values(3).ravel(), names=["a"]), r"got float32 of shape \(18,\)"),
        ("a.npz", npz(f=values(3)[None], names=["a"]), r"got float32 of shape \(1, 3, 2, 3\)"),
        ("a.npz", npz(f=values(3).astype(int), names=["a"]), r"floating-point numbers .* got int64"),
        ("a.npz", npz(f=values(3)[:, :0], names=["a"] * 3), "holds no features"),
        ("a.npz", npz(f=values(0), names=np.array([], "U1")), "holds no features"),
        ("a.npz", b"PK garbage", "is no array of numbers, or damaged"),
        ("a.npy", npy(values(3))[:-8], "is no array of numbers, or damaged"),
        ("a.npy", npy(np.array([{"a": 1}], object)), "is no array of numbers, or damaged"),
        ("a.parquet", parquet(x=[1]), r"needs the columns path \(or name\) and features, and has x"),
        ("a.parquet", parquet(path=["a"], features=["b"]), "must be lists of floating-point numbers, these are string"),
        ("a.parquet", parquet(path=["a"], features=[[1]]), "must be lists of floating-point numbers"),
        ("a.parquet", parquet(path=["a", "b"], features=[[1.0, 2.0], [1.0]]), "expected 2 numbers per image"),
        ("a.parquet", parquet(path=["a"], features=[[1.0, float("inf")]]), "the features of a are not finite"),
    ],
)
def test_what_is_refused(tmp_path: Path, cache: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_features(str(tmp_path / name))
    assert not list(cache.glob("*/*")), "something half-made was left in the cache"


# ---- names ----


def store_of(*paths: str) -> FeatureStore:
    return FeatureStore(ENCODER, None, list(paths), np.zeros((len(paths), 2, 3), np.float16))


def test_positions() -> None:
    store = store_of("s3://b/train/1.jpg", "s3://b/val/1.jpg", "s3://b/val/2.jpg")
    assert store.positions(["2.jpg", "val/1.jpg", "/data/train/1.jpg"]).tolist() == [2, 1, 0]
    assert store.positions([]).tolist() == []


def test_positions_that_are_not_there() -> None:
    store = store_of("a/1.jpg", "b/1.jpg")
    with pytest.raises(ValueError, match=r"2 of 3 images have no features: x/2\.jpg, 3\.jpg"):
        store.positions(["x/2.jpg", "a/1.jpg", "3.jpg"])
    with pytest.raises(ValueError, match=r"^1\.jpg may be a/1\.jpg or b/1\.jpg: name it with its folder"):
        store.positions(["1.jpg"])


def test_index_by_name() -> None:
    assert store_of("a/1.jpg", "a/2.jpg").index_by_name() == {"1.jpg": 0, "2.jpg": 1}
    with pytest.raises(ValueError, match=r"a/1\.jpg and b/1\.jpg share their file name"):
        store_of("a/1.jpg", "b/1.jpg").index_by_name()


# ---- the cache ----


def test_it_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(tmp_path / "out", "a.parquet")
    first = open_features(str(tmp_path / "out"))
    monkeypatch.setattr(features_module, "_write", None)
    second = open_features(str(tmp_path / "out"))
    assert (second.paths, second.encoder, second.fingerprint) == (first.paths, first.encoder, first.fingerprint)
    np.testing.assert_array_equal(first.array, second.array)


def test_a_changed_source_is_read_again(tmp_path: Path, cache: Path) -> None:
    write_job(tmp_path / "out", "a.parquet")
    old = open_features(str(tmp_path / "out"))
    write_job(tmp_path / "out", "b.parquet", start=4, count=1)
    assert len(open_features(str(tmp_path / "out")).paths) == 5
    write_job(tmp_path / "out", "a.parquet", start=10)
    os.utime(tmp_path / "out" / "a.parquet", (0, 0))
    assert open_features(str(tmp_path / "out")).paths[0] == "photos/10.jpg"
    assert len(list(cache.glob("*/meta.json"))) == 1  # gigabytes that nobody needs any more
    assert old.array[3, 0, 0] == 30  # what is open stays open


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("features.f16", b"short"),
        ("features.f16", b"long" * 100),
        ("meta.json", b"{"),
        ("meta.json", b"{}"),
        ("meta.json", None),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, file: str, content: bytes | None) -> None:
    write_job(tmp_path / "out", "a.parquet")
    open_features(str(tmp_path / "out"))
    (path,) = cache.glob(f"*/{file}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    np.testing.assert_array_equal(open_features(str(tmp_path / "out")).array, values(4))


def test_a_read_only_cache_that_is_complete(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(tmp_path / "out", "a.parquet")
    open_features(str(tmp_path / "out"))
    monkeypatch.setattr(Path, "mkdir", read_only)
    assert len(open_features(str(tmp_path / "out")).paths) == 4


def read_only(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_read_only_cache_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(tmp_path / "out", "a.parquet")
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(CacheError, match=r"cannot be written \(Read-only file system\): .* CAPTIONLIB_CACHE"):
        open_features(str(tmp_path / "out"))


def test_a_full_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_job(tmp_path / "out", "a.parquet")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\): make room there"):
        open_features(str(tmp_path / "out"))
    assert not list(cache.glob("*/*"))


def _open(url: str, cache_dir: str, queue: Any) -> None:
    queue.put(float(open_features(url, cache_dir).array.sum(dtype=np.float64)))


def test_several_processes_at_once(tmp_path: Path) -> None:
    for i in range(20):
        write_job(tmp_path / "out", f"{i:02d}.parquet", start=50 * i, count=50)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (str(tmp_path / "out"), str(tmp_path / "shared"), queue)
    processes = [context.Process(target=_open, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    sums = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert sums == {float(values(1000).astype(np.float16).sum(dtype=np.float64))}
    assert len([path for path in (tmp_path / "shared").iterdir() if path.is_dir()]) == 1


def test_in_a_bucket(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    write_job(tmp_path / "out", "a.parquet")
    fs.put(str(tmp_path / "out"), f"/{tmp_path.name}/features", recursive=True)
    assert len(open_features(f"memory://{tmp_path.name}").paths) == 4
    fs.pipe(f"/{tmp_path.name}/mine.npy", npy(values(2)))
    fs.pipe(f"/{tmp_path.name}/mine.txt", b"a\nb\n")
    store = open_features(f"memory://{tmp_path.name}/mine.npy")
    np.testing.assert_array_equal(store.array, values(2))
    fs.pipe(f"/{tmp_path.name}/mine.txt", b"a\nc\n")
    assert open_features(f"memory://{tmp_path.name}/mine.npy").paths == ["a", "c"]


def test_a_bucket_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "isfile", denied)
    with pytest.raises(ValueError, match="the features memory://x could not be read: Access Denied"):
        open_features("memory://x")


def test_the_metadata_can_be_read_by_others(tmp_path: Path) -> None:
    write_job(tmp_path, "a.parquet")
    metadata = pq.read_schema(tmp_path / "a.parquet").metadata
    assert json.loads(metadata[b"captionlib.features.store"])["encoder"]["name"] == "efficientnet_lite0"
