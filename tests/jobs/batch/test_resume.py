from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from stubs import run_stub, settings

from captionlib.storage.folder import Folder
from jobs.batch.manifest import Manifest
from jobs.batch.resume import check_inputs, for_record, open_output
from jobs.cluster.submitted_code import check_paths_outlive_job
from jobs.inputs.sources import Sources
from jobs.outputs import run_record, schemas
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange

IDENTITY = {"schema_version": 1, "model": "stub 1"}


@pytest.fixture
def finished(tmp_path, make_images):
    """The output of a run over two images."""
    output = Folder.of(str(tmp_path / "out"))
    Manifest.open(output / "manifest").append(Sources((str(make_images(2)),)).list())
    files = ChunkFiles(output / "captions", "captions")
    files.write(IdRange(0, 1), pa.Table.from_pylist([{"image_id": 0}, {"image_id": 1}], schema=schemas.CAPTIONS))
    run_record.write_record(output, {"job": "stub", "state": "complete", "identity": IDENTITY})
    return output, {"captions": files}


def contents(output):
    return sorted(str(path) for path in Path(output.url).rglob("*") if path.name != ".lock")


def test_an_output_of_the_same_making_is_gone_on_with(finished):
    assert open_output(*finished, "stub", IDENTITY, overwrite=False)["state"] == "complete"  # type: ignore[arg-type, call-arg, misc]


@pytest.mark.parametrize(
    ("kind", "identity", "message"),
    [
        ("stub", {**IDENTITY, "model": "stub 2"}, "model is stub 1 there and stub 2 now"),
        ("stub", {**IDENTITY, "schema_version": 2}, "schema_version is 1 there and 2 now"),
        ("other", IDENTITY, "is the output of another job, stub"),
    ],
)
def test_an_output_of_another_making_is_refused(finished, kind, identity, message):
    before = contents(finished[0])
    with pytest.raises(ValueError, match=message):
        open_output(*finished, kind, identity, overwrite=False)  # type: ignore[call-arg, misc]
    assert contents(finished[0]) == before


def test_another_jobs_output_is_not_overwritten(finished):
    with pytest.raises(ValueError, match="another job"):
        open_output(*finished, "other", IDENTITY, overwrite=True)  # type: ignore[arg-type, call-arg, misc]


def test_an_output_that_lost_its_manifest_or_its_record_is_refused(finished):
    output, _ = finished
    (output / "manifest").delete("manifest-000000000000-000000000001.parquet")
    with pytest.raises(ValueError, match="rows up to image 1, but its manifest has only 0"):
        open_output(*finished, "stub", IDENTITY, overwrite=False)  # type: ignore[arg-type, call-arg, misc]
    output.delete("run.json")
    with pytest.raises(ValueError, match=r"no run\.json"):
        open_output(*finished, "stub", IDENTITY, overwrite=False)  # type: ignore[arg-type, call-arg, misc]


def test_a_damaged_record_is_said(finished):
    finished[0].write("run.json", b"{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        open_output(*finished, "stub", IDENTITY, overwrite=False)  # type: ignore[arg-type, call-arg, misc]


def test_overwrite_deletes_what_is_ours_and_nothing_else(finished):
    output, outputs = finished
    output.write("notes.txt", b"mine")
    (output / "captions").write("other.parquet", b"mine")
    assert open_output(output, outputs, "stub", {"model": "other"}, overwrite=True) == {}
    left = [path.removeprefix(output.url) for path in contents(output)]
    assert left == ["/captions", "/captions/other.parquet", "/manifest", "/notes.txt"]


def test_a_wrong_input_does_not_cost_the_output(finished, tmp_path):
    before = contents(finished[0])
    (tmp_path / "empty").mkdir()
    for wrong in ("nowhere", "empty"):
        with pytest.raises(ValueError, match="does not exist|no images"):
            run_stub(tmp_path / wrong, finished[0].url, overwrite=True)
    assert contents(finished[0]) == before


def test_one_input_with_an_image_is_enough(tmp_path, make_images):
    (tmp_path / "empty").mkdir()
    check_inputs(Sources((str(tmp_path / "empty"), str(make_images(1)))))


def test_folders_that_every_machine_must_see(tmp_path, make_images):
    source = make_images(1)
    given = (str(source), f"{source}/*.jpg", f"file://{source}/0000.jpg", "s3://bucket/photos")
    assert Sources(given).local_roots() == (str(source),) * 3


def test_the_record_holds_no_password():
    made = for_record(settings("https://me:secret@host/photos/?signature=secret", "s3://bucket/out"))
    assert made["input"] == "https://***@host/photos/?signature=***"
    assert "secret" not in str(made)


def test_relative_paths_of_a_submitted_job_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    check_paths_outlive_job("s3://bucket/photos", str(tmp_path))
    with pytest.raises(ValueError, match="out lies in the copy of the code"):
        check_paths_outlive_job("s3://bucket/photos", "out")
