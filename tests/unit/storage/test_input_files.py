from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from captionlib import Predictor
from captionlib.checkpoints import CheckpointError
from captionlib.datasets import read_dataset
from captionlib.errors import UserError
from captionlib.features.store import open_features
from captionlib.storage import errors, inputs
from captionlib.storage.errors import TransportFault

NAMES = ("cat_file", "exists", "isfile", "isdir", "glob", "ls", "ukey", "open")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any, list[str]]]:
    """(URL, filesystem, failures to come): each call of the filesystem fails while its name is in the list."""
    monkeypatch.setenv("CAPTIONLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("captionlib.storage.errors.time.sleep", lambda seconds: None)
    fs, failures = fsspec.filesystem("memory"), []  # type: ignore[var-annotated]

    def wrapped(name: str, method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name in failures:
                failures.remove(name)
                raise ConnectionResetError(104, "Connection reset by peer")
            return method(self, *args, **kwargs)

        return call

    for name in NAMES:
        monkeypatch.setattr(type(fs), name, wrapped(name, getattr(type(fs), name)))
    yield f"memory://{tmp_path.name}", fs, failures
    fs.rm(f"/{tmp_path.name}", recursive=True)


def test_a_file(bucket: tuple[str, Any, list[str]]) -> None:
    url, fs, failures = bucket
    fs.pipe(f"{url}/a.txt", b"words")
    fs.pipe(f"{url}/b.txt.gz", gzip.compress(b"words"))
    failures += ["exists", "cat_file", "cat_file", "open", "ukey"]
    assert inputs.exists(f"{url}/a.txt")
    assert not inputs.exists(f"{url}/none.txt")
    assert inputs.read(f"{url}/a.txt") == b"words"
    assert inputs.read_decompressed(f"{url}/b.txt.gz") == b"words"
    with inputs.open_input(f"{url}/a.txt") as file:
        assert file.read() == b"words"
    before = inputs.version(f"{url}/a.txt")
    fs.pipe(f"{url}/a.txt", b"other")
    assert inputs.version(f"{url}/a.txt") != before
    assert failures == []


def test_what_is_wrong_is_named(bucket: tuple[str, Any, list[str]], tmp_path: Path) -> None:
    url, fs, failures = bucket
    with pytest.raises(FileNotFoundError):
        inputs.read(f"{url}/none.txt")
    fs.pipe(f"{url}/b.txt.gz", gzip.compress(b"words" * 100)[:20])
    with pytest.raises(UserError, match="b.txt.gz cannot be decompressed"):
        inputs.read_decompressed(f"{url}/b.txt.gz")
    with pytest.raises(UserError, match="nosuch://x cannot be opened: Protocol not known"):
        inputs.read("nosuch://x")
    failures += ["cat_file"] * errors.ATTEMPTS
    with pytest.raises(TransportFault, match="Connection reset by peer"):
        inputs.read(f"{url}/b.txt.gz")
    (tmp_path / "here.txt").write_text("here")
    assert inputs.read(str(tmp_path / "here.txt")) == b"here"


def test_a_storage_that_fails_at_times_is_asked_again(
    bucket: tuple[str, Any, list[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Datasets, features and checkpoints come through the same layer."""
    url, fs, failures = bucket
    fs.pipe(f"{url}/captions.csv", b"path,caption\na.jpg,a dog\n")
    failures += ["exists", "cat_file"]
    (record,) = read_dataset("csv", None, captions_file=f"{url}/captions.csv")
    assert record.path == f"{url}/a.jpg"
    assert failures == []

    fs.put(str(tiny_checkpoint), f"{url}/best", recursive=True)
    failures += ["ls", "ukey", "cat_file"]
    assert (
        Predictor.from_checkpoint(f"{url}/best").fingerprint == Predictor.from_checkpoint(tiny_checkpoint).fingerprint
    )
    assert failures == []
    failures += ["ls"] * errors.ATTEMPTS
    with pytest.raises(CheckpointError, match="could not be read: .*Connection reset by peer"):
        Predictor.from_checkpoint(f"{url}/best")

    failures += ["isfile"] * errors.ATTEMPTS
    with pytest.raises(UserError, match="could not be read: .*Connection reset by peer"):
        open_features(f"{url}/features")
