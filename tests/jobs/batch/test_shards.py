"""Runs with `--shard K/N`: each in a folder of its own inside the output.

The shard of an image depends on the folder of the test, so forty images are used: no shard of them is ever empty.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pandas
import pytest
from stubs import run_stub, settings, stub_job

import jobs.caption
from captionlib.errors import UserError
from captionlib.storage.folder import Folder
from jobs.batch.resume import output_lock
from jobs.batch.run import run_batch_job
from jobs.batch.summary import print_summary
from jobs.inputs.run_shard import RunShard
from jobs.outputs.sidecar import Sidecar

pytestmark = pytest.mark.usefixtures("run_in_process")


def paths(*folders):
    return sorted(path for folder in folders for path in pandas.read_parquet(folder / "captions").path)


def test_each_run_processes_its_share_in_its_folder(tmp_path, make_images):
    source, output = make_images(40), tmp_path / "out"
    counts = [run_stub(source, output, shard=f"{k}/3").counts for k in (1, 2, 3)]
    assert sum(done for done, _ in counts) == 40
    folders = [output / f"shard-{k}-of-3" for k in (1, 2, 3)]
    assert paths(*folders) == sorted(map(str, source.iterdir()))
    for k, folder in enumerate(folders, 1):
        record = json.loads((folder / "run.json").read_text())
        assert (record["state"], record["identity"]["shard"]) == ("complete", f"{k}/3")
        assert record["runs"][0]["settings"]["shard"] == f"{k}/3"
        assert all(RunShard(3, k).contains(path) for path in paths(folder))
    assert set(os.listdir(output)) == {folder.name for folder in folders}

    make_images(40, start=50)
    again = [run_stub(source, output, shard=f"{k}/3") for k in (1, 2, 3)]
    assert sum(outcome.images for outcome in again) == 40
    assert paths(*folders) == sorted(map(str, source.iterdir()))
    assert all(run_stub(source, output, shard=f"{k}/3").run == {} for k in (1, 2, 3))


def test_a_limit_counts_within_the_shard(tmp_path, make_images):
    source, output = make_images(40), tmp_path / "out"
    for k in (1, 2):
        assert run_stub(source, output, shard=f"{k}/2", limit=2).counts == (2, 0)


def test_a_shard_without_images_is_complete(tmp_path, make_images, capsys):
    source, output = make_images(1), tmp_path / "out"
    (path,) = map(str, source.iterdir())
    empty = next(k for k in (1, 2) if not RunShard(2, k).contains(path))
    for _ in range(2):
        outcome = run_stub(source, output, shard=f"{empty}/2")
        assert outcome.counts == (0, 0)
        print_summary(outcome, "captioned")
        assert capsys.readouterr().out == f"Nothing to do: no image of the inputs belongs to shard {empty}/2.\n"
    assert json.loads((output / f"shard-{empty}-of-2" / "run.json").read_text())["state"] == "complete"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="there are no images in"):
        run_stub(tmp_path / "nothing", output, shard="1/2")


def test_an_output_is_ordinary_or_has_shards_of_one_number(tmp_path, make_images):
    source, sharded, ordinary, rest = make_images(40), tmp_path / "sharded", tmp_path / "ordinary", tmp_path / "rest"
    run_stub(source, sharded, shard="1/2")
    run_stub(source, ordinary)
    run_stub(source, rest)
    (rest / "run.json").unlink()
    for output, shard, message in [
        (sharded, "1/3", "contains shard-1-of-2, so its images are divided among 2 runs, not 3: use --shard K/2"),
        (sharded, None, "contains shard-1-of-2, the output of a run with --shard 1/2: .* python -m jobs.merge"),
        (ordinary, "1/2", "is the output of a run without --shard"),
        (rest, "1/2", "contains the rows of a run without --shard"),
        (sharded / "shard-1-of-2", None, "shard is 1/2 there and None now"),
    ]:
        before = sorted(output.rglob("*"))
        with pytest.raises(UserError, match=message):
            run_stub(source, output, shard=shard)
        assert sorted(output.rglob("*")) == before
    (sharded / "shard-1-of-2").rename(sharded / "shard-2-of-2")
    with pytest.raises(UserError, match="shard is 1/2 there and 2/2 now"):
        run_stub(source, sharded, shard="2/2")


def test_a_lock_is_for_one_shard(tmp_path, make_images):
    source, output = make_images(4), tmp_path / "out"
    with output_lock(Folder.of(str(output / "shard-1-of-2"))):
        with pytest.raises(UserError, match="another run is writing to .*/shard-1-of-2"):
            run_stub(source, output, shard="1/2")
        run_stub(source, output, shard="2/2")


def test_a_dry_run_counts_the_images_of_the_shard_and_leaves_nothing(tmp_path, tiny_checkpoint, make_images, capfd):
    source, output = make_images(40), tmp_path / "out"
    options = [str(source), str(output), "--model", str(tiny_checkpoint), "--dry-run", "--shard"]
    counts = []
    for k in range(1, 4):
        assert jobs.caption.main([*options, f"{k}/3"]) == 0
        counts.append(int(capfd.readouterr().out.partition(" images")[0]))
    assert sum(counts) == 40
    assert 40 not in counts
    assert not output.exists()
    run_stub(source, output, shard="1/3")
    assert jobs.caption.main([*options, "1/2"]) == 2
    assert "so its images are divided among 3 runs, not 2" in capfd.readouterr().err

    (path,) = map(str, make_images(1, "single").iterdir())
    options[:2] = [path, str(tmp_path / "single-out")]
    empty = next(k for k in (1, 2) if not RunShard(2, k).contains(path))
    assert jobs.caption.main([*options, f"{empty}/2"]) == 0
    assert capfd.readouterr().out == "0 images\n"


@pytest.mark.parametrize("has_folder", [False, True])
def test_no_two_runs_write_the_same_text_file(tmp_path, make_images, has_folder):
    source = make_images(12)
    for path in list(source.iterdir()):
        path.with_suffix(".png").write_bytes(path.read_bytes())
    folder = str(tmp_path / "texts") if has_folder else None
    sidecar = Sidecar("append", folder=folder, roots=(str(source),), is_sharded=True)
    for k in (1, 2, 3):
        run_batch_job(stub_job(sidecar=sidecar), settings(source, tmp_path / "out", shard=f"{k}/3"))
    written = {path.name: path.read_text() for path in Path(folder or source).glob("*.txt")}
    assert len(written) == 24
    assert all(text.count("\n") == 1 for text in written.values())  # nobody appended to another's
    assert {name.partition(".")[2] for name in written} == {"txt", "png.txt"}


def test_images_without_an_ending_of_their_own_keep_their_whole_name():
    sidecar = Sidecar("overwrite", folder="/texts", is_sharded=True)
    places = [sidecar._place(f"https://host/img.php?id={i}&token=secret") for i in (1, 2)]
    assert places == [("/texts/host", f"img.php_id={i}&token=___.txt") for i in (1, 2)]
    assert sidecar._place("https://host/a.jpg") == ("/texts/host", "a.txt")


def test_a_mended_tar_is_listed_again_by_every_shard(tmp_path, make_images):
    folder, output = make_images(12, "photos"), tmp_path / "out"
    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(folder, "photos")
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    inputs = str(tmp_path / "*.tar")
    for k in (1, 2):
        run_stub(inputs, output, shard=f"{k}/2")
    (tmp_path / "a.tar").write_bytes(whole)
    for k in (1, 2):
        run_stub(inputs, output, shard=f"{k}/2")
    found = paths(*output.iterdir())
    assert len(set(found)) == len(found) == 24 + 1  # and the row of the tar itself, which says that it was damaged
