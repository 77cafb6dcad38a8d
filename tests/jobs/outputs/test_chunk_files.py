from __future__ import annotations

import os

import fsspec
import pandas
import pyarrow as pa
import pytest

from captionlib.storage.folder import Folder
from jobs.outputs import chunk_files as module
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles, FileCounts, adjacent_groups, replace_rows
from jobs.outputs.id_ranges import IdRange


def rows(first, last, *failed, caption="a cat"):
    table = [
        {"image_id": i, "path": f"/in/{i}.jpg", "error": "NotFound: gone" if i in failed else None,
         "caption": None if i in failed else caption}
        for i in range(first, last + 1)
    ]  # fmt: skip
    schema = schemas.with_metadata(schemas.CAPTIONS, {"model": "f00"})
    return pa.Table.from_pylist(table, schema=schema)


@pytest.fixture(params=["local", "memory"])
def files(request, tmp_path):
    if request.param == "local":
        yield ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
    else:
        yield ChunkFiles(Folder.of(f"memory://{tmp_path.name}/captions"), "captions")
        fsspec.filesystem("memory").store.clear()


def write(files, *chunks):
    for first, last, *failed in chunks:
        files.write(IdRange(first, last), rows(first, last, *failed))


def contents(files):
    return [row for ids in files.finished() for row in files.read(ids, ["image_id", "error"]).to_pylist()]


def test_a_part_is_finished_when_its_file_is_there(files):
    assert files.finished() == []
    write(files, (5, 9), (0, 4, 2))
    assert files.finished() == [IdRange(0, 4), IdRange(5, 9)]
    assert files.exists(IdRange(0, 4))
    assert not files.exists(IdRange(0, 5))
    assert files.count(files.finished()) == {IdRange(0, 4): FileCounts(4, 1), IdRange(5, 9): FileCounts(5, 0)}
    assert files.metadata(IdRange(0, 4)) == {"model": "f00"}


def test_a_part_written_twice_replaces_itself(files):
    write(files, (0, 4), (0, 4, 1))
    assert files.count(files.finished()) == {IdRange(0, 4): FileCounts(4, 1)}


def test_other_files_and_half_written_ones_do_not_count(files):
    write(files, (0, 4))
    files.folder.write("notes.txt", b"mine")
    files.folder.write("captions-1-2.parquet", b"not one of ours")
    files.folder.write(".captions-000000000005-000000000009.parquet.abc.tmp", b"half")
    assert files.finished() == [IdRange(0, 4)]
    files.tidy()
    left = [name for name in files.folder.names() if "000000" not in name]
    assert left == ["captions-1-2.parquet", "notes.txt"]
    assert ".captions-000000000005-000000000009.parquet.abc.tmp" not in files.folder.names()
    files.delete()
    assert files.folder.names() == ["captions-1-2.parquet", "notes.txt"]


def test_compaction_keeps_every_row(files):
    write(files, (0, 4, 2), (5, 9), (10, 14), (20, 24), (25, 29, 27), (30, 30))
    before = contents(files)
    files.compact(target_rows=12)
    assert files.finished() == [IdRange(0, 9), IdRange(10, 14), IdRange(20, 30)]
    assert contents(files) == before
    assert files.metadata(IdRange(20, 30)) == {"model": "f00"}


def test_another_job_that_merges_the_same_files(files, monkeypatch):
    """Its files may go between our listing and our reading."""
    write(files, (0, 4, 2), (5, 9))
    before, listed = contents(files), files.finished()
    files.compact(target_rows=10)
    listings = [listed]
    finished = ChunkFiles.finished
    monkeypatch.setattr(ChunkFiles, "finished", lambda self: listings.pop() if listings else finished(self))
    files.compact(target_rows=10)
    assert contents(files) == before
    listings.append(listed)
    assert files.totals() == FileCounts(9, 1)
    listings += [listed] * 3
    with pytest.raises(FileNotFoundError):
        files.totals()


def test_compaction_killed_before_it_deletes(files, monkeypatch):
    write(files, (0, 4, 2), (5, 9))
    before = contents(files)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", lambda self, name: None)
        files.compact(target_rows=10)
    assert len(files.folder.names()) == 3
    assert files.finished() == [IdRange(0, 9)]
    assert contents(files) == before
    files.tidy()
    assert files.folder.names() == ["captions-000000000000-000000000009.parquet"]


@pytest.mark.parametrize(
    ("ranges", "groups"),
    [
        ([], []),
        ([(0, 4)], []),
        ([(0, 4), (5, 9)], [[(0, 4), (5, 9)]]),
        ([(0, 4), (6, 9)], []),  # a gap
        ([(0, 3), (4, 7), (8, 11), (12, 15)], [[(0, 3), (4, 7)], [(8, 11), (12, 15)]]),  # 8 of 10 rows
        ([(0, 1), (2, 8), (9, 10), (11, 12)], [[(9, 10), (11, 12)]]),  # 7 of 10 rows are enough already
    ],
)
def test_groups_to_merge(ranges, groups):
    found = adjacent_groups([IdRange(*r) for r in ranges], 10)
    assert [[tuple(ids) for ids in group] for group in found] == groups


def test_a_file_that_contradicts_its_name(files):
    write(files, (0, 4))
    files.folder.write("captions-000000000005-000000000009.parquet",
                       files.folder.read("captions-000000000000-000000000004.parquet"))  # fmt: skip
    assert len(files.count(files.finished())) == 2  # as many rows; which ones is for the reader to see
    files.folder.write("captions-000000000010-000000000012.parquet",
                       files.folder.read("captions-000000000000-000000000004.parquet"))  # fmt: skip
    with pytest.raises(ValueError, match="000000000012.parquet has 5 rows, not 3: delete this file"):
        files.count(files.finished())


def test_large_files_are_cut_before_their_errors_are_done_again(files, monkeypatch):
    monkeypatch.setattr(module, "LARGEST_CHUNK", 6)
    write(files, (0, 9, 3, 4, 9), (10, 14, 12), (15, 24))
    before = contents(files)
    counted = files.count(files.finished())
    assert files.split_for_redo(counted, 4) == {
        IdRange(0, 3): 1,
        IdRange(4, 7): 1,
        IdRange(8, 9): 1,
        IdRange(10, 14): 1,
    }
    assert contents(files) == before
    assert IdRange(15, 24) in files.finished()  # without errors: as it was


def test_rows_done_again_replace_those_of_the_same_image():
    old = rows(0, 4, 1, 3)
    new = pa.concat_tables([rows(1, 1, caption="a dog"), rows(3, 3, 3)])
    merged = replace_rows(old, new)
    assert merged.column("image_id").to_pylist() == [0, 1, 2, 3, 4]
    assert merged.column("caption").to_pylist() == ["a cat", "a dog", "a cat", None, "a cat"]


def test_pandas_reads_the_folder_whatever_else_is_hidden_in_it(tmp_path):
    files = ChunkFiles(Folder.of(str(tmp_path / "captions")), "captions")
    write(files, (0, 4, 2), (5, 9))
    files.folder.write(".captions-000000000005-000000000009.parquet.abc.tmp", b"half")
    table = pandas.read_parquet(tmp_path / "captions")
    assert sorted(table.image_id) == list(range(10))
    assert table.error.notna().sum() == 1


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder = Folder.of(str(tmp_path))
    folder.write("a", b"old")

    def fail(source, target):
        raise PermissionError(13, "no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PermissionError):
        folder.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert folder.read("a") == b"old"
