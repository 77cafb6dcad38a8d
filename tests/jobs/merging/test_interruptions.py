"""A merge or a deletion of shards that is killed, wherever that happens, is completed by the next one."""

from __future__ import annotations

import itertools
import shutil

import pytest
from sharded import OF, change_record, contents, rows, run_shards
from stubs import run_stub

from captionlib.storage.folder import Folder
from jobs.merge import main
from jobs.outputs import run_record
from jobs.outputs.chunk_files import ChunkFiles


class Killed(BaseException):
    pass


def killed_at(monkeypatch, method, number):
    """Make a call of a method of `Folder` fail, as if the process was killed before it."""
    calls = iter(range(number))
    original = getattr(Folder, method)

    def counted(*given, **more):
        if next(calls, None) is None:
            raise Killed
        return original(*given, **more)

    monkeypatch.setattr(Folder, method, counted)


def test_a_merge_that_is_killed_at_any_write_is_completed_by_the_next(sharded, tmp_path):
    source, output = sharded
    assert main([str(output)]) == 0
    expected = contents(output)
    for kills in itertools.count():
        for path in output.glob("[!s]*"):  # all but the shards
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, "write", kills)
            try:
                main([str(output)])
                break
            except Killed:
                assert not (output / "run.json").exists()
        with pytest.raises(ValueError, match=r"merge the shards with python -m jobs\.merge"):
            run_stub(source, output)
        assert run_stub(source, output, shard="1/3").run == {}
        assert main([str(output)]) == 0
        assert contents(output) == expected
        assert not (output / "merge.json").exists()
    assert kills == 12  # 3 manifests, 3 files of rows, merge.json and run.json; 4 folders are tested for writing


def test_what_was_copied_is_not_copied_again(sharded, monkeypatch):
    _, output = sharded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_record, "write_record", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main([str(output)])
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*.parquet")}
    assert len(before) == 6
    assert main([str(output)]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/*.parquet")} == before


def test_a_merge_starts_over_if_a_shard_has_changed_since(sharded, make_images):
    source, output = sharded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_record, "write_record", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            main([str(output)])
    make_images(40, start=50)
    run_shards(source, output)
    assert main([str(output)]) == 0
    assert rows(output).image_id.tolist() == list(range(81))
    assert sorted(rows(output).path) == sorted(map(str, source.iterdir()))


def test_a_deletion_that_is_killed_is_completed_by_the_next(sharded, capfd):
    source, output = sharded
    assert main([str(output)]) == 0
    (output / "shard-1-of-3" / "notes.txt").write_text("mine")
    expected = contents(output)
    for number in range(0, 200, 3):
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, "delete", number)
            try:
                assert main([str(output), "--delete-shards"]) == 0
                break
            except Killed:
                assert contents(output) == expected
    assert number > 10
    assert [str(path.relative_to(output)) for path in sorted(output.rglob("shard-*/**/*"))] == [
        "shard-1-of-3/notes.txt"
    ]
    assert contents(output) == expected
    assert run_stub(source, output).run == {}
    assert main([str(output), "--delete-shards"]) == 0


def test_shards_are_deleted_only_if_the_merged_output_has_their_rows(sharded, capfd):
    _, output = sharded
    assert main([str(output)]) == 0
    change_record(output / "shard-2-of-3", state="running")
    assert main([str(output), "--delete-shards"]) == 2
    assert "shard-2-of-3 has changed since it was merged" in capfd.readouterr().err
    next(iter((output / "captions").iterdir())).unlink()
    assert main([str(output), "--delete-shards"]) == 2
    assert "lacks the rows of images" in capfd.readouterr().err
    assert len(list(output.glob("shard-*/captions/*.parquet"))) == OF


def test_a_merged_output_is_not_divided_again(sharded):
    source, output = sharded
    assert main([str(output)]) == 0
    with pytest.raises(ValueError, match="the shards in .* are merged already: leave out --shard"):
        run_stub(source, output, shard="1/3")


def test_a_shard_that_changes_during_the_merge_is_noticed(sharded, capfd, monkeypatch):
    _, output = sharded
    write = ChunkFiles.write

    def write_and_change(files, ids, table):
        write(files, ids, table)
        change_record(output / "shard-1-of-3", state="running")

    monkeypatch.setattr(ChunkFiles, "write", write_and_change)
    assert main([str(output)]) == 2
    assert "shard 1/3 was changed during the merge" in capfd.readouterr().err
    assert not (output / "run.json").exists()
