"""What is checked before outputs are merged, and what is said of those that cannot be."""

from __future__ import annotations

import re
import shutil

import pytest
from sharded import change_record, record_of, rows, run_shards
from stubs import run_stub

from captionlib.storage.folder import Folder
from jobs.merge import main
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange

pytestmark = pytest.mark.usefixtures("run_in_process")


def test_missing_and_incomplete_shards_are_named_with_the_command(sharded, capfd):
    source, output = sharded
    shutil.rmtree(output / "shard-2-of-3")
    change_record(output / "shard-3-of-3", state="running")
    for arguments in ([str(output)], [str(output), "--check"]):
        assert main(arguments) == 1
        printed = capfd.readouterr()
        assert (
            "2 of 3 shards cannot be merged yet: 2/3 (missing), 3/3 (incomplete). Run python -m jobs.stub "
            f"{source} {output} --shard 2/3 and so on with the other settings of the first run, and then merge again"
        ) in printed.err
        assert re.search(r"│ 2/3 +│ +│ +│ +│ missing ", printed.out)
    run_shards(source, output)
    assert main([str(output)]) == 0


def test_rows_that_are_gone_are_incomplete(sharded, capfd):
    source, output = sharded
    (file,) = (output / "shard-2-of-3" / "captions").iterdir()
    file.unlink()
    assert main([str(output)]) == 1
    assert "1 of 3 shards cannot be merged yet: 2/3 (without the rows of images from 0 on in captions)" in (
        capfd.readouterr().err
    )
    run_shards(source, output)
    assert main([str(output)]) == 0


def test_check_writes_nothing(sharded, capfd):
    _, output = sharded
    before = sorted(output.rglob("*"))
    assert main([str(output), "--check"]) == 0
    assert sorted(output.rglob("*")) == before
    assert re.search(rf"\nall shards can be merged: .* {output}\n", capfd.readouterr().out)


def damage(change):
    """A change to an output with shards, and what is said of it."""
    return pytest.param(*change, id=change[0].__name__)


def other_identity(output):
    folder = output / "shard-2-of-3"
    change_record(folder, identity=record_of(folder)["identity"] | {"model": "stub 2"})


def other_arithmetic(output):
    change_record(output / "shard-3-of-3", arithmetic="bfloat16 in PyTorch")


def other_name(output):
    shutil.rmtree(output / "shard-2-of-3")
    (output / "shard-1-of-3").rename(output / "shard-2-of-3")


def other_number(output):
    (output / "shard-1-of-3").rename(output / "shard-1-of-2")


def other_manifest(output):
    """Folders change places, and their records do not."""
    first, second = output / "shard-1-of-3", output / "shard-2-of-3"
    for name in ("manifest", "captions"):
        (first / name).rename(output / "kept")
        (second / name).rename(first / name)
        (output / "kept").rename(second / name)


def other_rows(output):
    """The rows of a file are those of other images."""
    files = ChunkFiles(Folder.of(str(output / "shard-2-of-3" / "captions")), "captions")
    (ids,) = files.finished()
    files.write(ids, files.read(ids).set_column(1, "path", [["/x.jpg"] * ids.size]))


def too_many_rows(output):
    files = ChunkFiles(Folder.of(str(output / "shard-2-of-3" / "captions")), "captions")
    (ids,) = files.finished()
    files.write(IdRange(ids.last + 1, ids.last + ids.size), files.read(ids))


def damaged_record(output):
    (output / "shard-2-of-3" / "run.json").write_text("{")


def own_rows(output):
    shutil.copytree(output / "shard-1-of-3" / "captions", output / "captions")


def own_record(output):
    (output / "run.json").write_text('{"state": "complete"}')


def no_shards(output):
    shutil.rmtree(output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        damage((other_identity, r"shards 1/3 and 2/3 were not made in the same way: model is stub 1 there and stub 2")),
        damage((other_arithmetic, "arithmetic is None there and bfloat16 in PyTorch now")),
        damage((other_name, "shard-2-of-3 has the rows of shard 1/3: a folder was renamed")),
        damage((other_number, "contains shards of 2 and of 3 runs")),
        damage((other_manifest, r"shard-1-of-3 contains .*\.jpg, which does not belong to shard 1/3")),
        damage((other_rows, r"shard-2-of-3/captions: the rows 0 to \d+ are not of the images that the manifest has")),
        damage((too_many_rows, r"contains rows of image \d+, but the manifest has only \d+ images")),
        damage(
            (damaged_record, r"shard-2-of-3/run.json is damaged .*: delete it, and run the job of this shard again")
        ),
        damage((own_rows, "/captions contains rows that are of no merge")),
        damage((own_record, "is the output of a run without --shard: there is nothing to merge")),
        damage((no_shards, "there are no shards in")),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(sharded, capfd, change, message):
    _, output = sharded
    change(output)
    before = sorted(map(str, output.rglob("*.parquet")))
    assert main([str(output)]) == 2
    error = capfd.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert {path for path in map(str, output.rglob("*.parquet")) if "shard-" in path} == {
        path for path in before if "shard-" in path
    }
    assert not (output / "run.json").exists() or change is own_record
    assert output.exists() == (change is not no_shards)


def test_other_inputs_are_told(sharded, capfd):
    _, output = sharded
    change_record(output / "shard-2-of-3", inputs=["elsewhere"])
    assert main([str(output), "--check"]) == 0
    assert "that for shard 2/3 elsewhere: if these are not the same images, some are missing" in capfd.readouterr().err


def test_a_shard_without_images_is_merged(tmp_path, make_images):
    source, output = make_images(1), tmp_path / "out"
    run_shards(source, output)
    assert main([str(output)]) == 0
    assert rows(output).image_id.tolist() == [0]
    assert run_stub(source, output).run == {}
