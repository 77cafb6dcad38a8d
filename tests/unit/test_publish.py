"""Publishing of checkpoints: the order of the files, and what an error leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from captionlib.checkpoints import CONFIG, changed_copy, publish_checkpoint
from captionlib.storage.folder import Folder

FILES = {"a.txt": b"1", CONFIG: b"2", "z.txt": b"3"}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    directory = tmp_path / "original"
    directory.mkdir()
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    return directory


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_config_is_written_last(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    write = Folder.write

    def write_and_note(self: Folder, name: str, data: bytes) -> None:
        order.append(name)
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", write_and_note)
    publish_checkpoint(original, Folder.of(str(tmp_path / "output")))
    assert sorted(order) == sorted(FILES)
    assert order[-1] == CONFIG
    assert files(tmp_path / "output") == FILES


@pytest.mark.parametrize("target", ["original", "output"])
def test_a_changed_copy_is_published(original: Path, tmp_path: Path, target: str) -> None:
    with changed_copy(original, Folder.of(str(tmp_path / target))) as draft:
        (draft / "a.txt").write_bytes(b"changed")
        assert files(original) == FILES  # the original is as it was until the end
    assert files(tmp_path / target) == FILES | {"a.txt": b"changed"}


def test_an_error_publishes_nothing(original: Path) -> None:
    def fail() -> None:
        with changed_copy(original, Folder.of(str(original))) as draft:
            (draft / "a.txt").write_bytes(b"changed")
            raise ValueError("no such weight")

    with pytest.raises(ValueError, match="no such weight"):
        fail()
    assert files(original) == FILES
