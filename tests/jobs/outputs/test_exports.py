"""Captions in the formats of other programs, and text files for images: nothing is lost or written twice."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import pandas
import pytest
from stubs import settings, stub_job

from jobs.batch.run import run_batch_job
from jobs.inputs.listing import ImageRef
from jobs.inputs.settings import SourceSettings
from jobs.outputs.export import EXPORTS
from jobs.outputs.sidecar import Sidecar

pytestmark = pytest.mark.usefixtures("run_in_process")


def run(given, output, *formats: str, sidecar: Sidecar | None = None, **more):
    return run_batch_job(stub_job(formats=formats, sidecar=sidecar), settings(given, output, **more))


def rows(output: Path) -> pandas.DataFrame:
    return pandas.read_parquet(output / "captions").sort_values("image_id").reset_index(drop=True)


def test_every_export_holds_the_captioned_images(tmp_path, make_images):
    source, output = make_images(12), tmp_path / "out"
    (source / "0003.jpg").write_bytes(b"")
    (source / "0004.jpg").rename(source / "COCO_val2014_000000391895.jpg")
    run(source, output, *EXPORTS)
    expected = rows(output)
    good = expected[expected.error.isna()]

    entries = json.loads((output / "captions.coco.json").read_text())
    assert [entry["caption"] for entry in entries] == good.caption.tolist()
    assert [entry["image_id"] for entry in entries][:2] == ["0000.jpg", "0001.jpg"]
    assert entries[-1]["image_id"] == 391895

    (shard,) = (output / "webdataset").iterdir()
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(members)[:3] == ["000000000.jpg", "000000000.txt", "000000000.json"]
    assert len(members) == 3 * 11
    for row in good.itertuples():
        key = f"{row.image_id:09d}"
        assert members[f"{key}.jpg"] == Path(row.path).read_bytes()
        assert members[f"{key}.txt"].decode() == row.caption
        assert json.loads(members[f"{key}.json"])["path"] == row.path

    folder = output / "imagefolder"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == good.caption.tolist()
    for line, row in zip(lines, good.itertuples(), strict=True):
        assert (folder / line["file_name"]).read_bytes() == Path(row.path).read_bytes()
    assert len(list(folder.iterdir())) == 12
    assert len((output / "captions.jsonl").read_text().splitlines()) == 12


def test_what_was_written_can_be_read_again(tmp_path, make_images):
    run(make_images(5), tmp_path / "1", "webdataset", "imagefolder")
    first = rows(tmp_path / "1")
    run(tmp_path / "1" / "webdataset" / "00000.tar", tmp_path / "2", source=SourceSettings(columns=("txt",)))
    assert rows(tmp_path / "2").txt.tolist() == first.caption.tolist()
    run(tmp_path / "1" / "imagefolder", tmp_path / "3", source=SourceSettings(columns=("text",)))
    assert rows(tmp_path / "3").text.tolist() == first.caption.tolist()


def test_exports_with_images_are_replaced_as_a_whole(tmp_path, make_images, monkeypatch, capsys):
    monkeypatch.setattr("jobs.outputs.image_exports.SAMPLES_PER_SHARD", 2)
    source, output = make_images(5), tmp_path / "out"
    run(source, output, "webdataset", "imagefolder")
    assert sorted(path.name for path in (output / "webdataset").iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]
    (source / "0000.jpg").unlink()
    (output / "run.json").write_text((output / "run.json").read_text().replace("complete", "incomplete"))
    run(source, output, "webdataset", "imagefolder")
    assert "1 captioned images cannot be read any more" in capsys.readouterr().err
    assert sorted(path.name for path in (output / "webdataset").iterdir()) == ["00000.tar", "00001.tar"]
    assert len(list((output / "imagefolder").iterdir())) == 5
    run(source, output, overwrite=True)
    assert not list((output / "webdataset").iterdir())


def test_nothing_captioned_is_an_empty_list(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    run(tmp_path / "in", tmp_path / "out", "coco", "webdataset")
    assert json.loads((tmp_path / "out" / "captions.coco.json").read_text()) == []


# --- text files ---------------------------------------------------------------------------------------------------


def texts(folder: Path, ending: str = ".txt") -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob(f"*{ending}")}


def test_images_of_one_name_have_text_files_of_their_own(tmp_path, make_images, capsys):
    source, output = make_images(3), tmp_path / "out"
    (source / "0001.png").write_bytes((source / "0000.jpg").read_bytes())
    (source / "0001.webp").write_bytes((source / "0002.jpg").read_bytes())
    run(source, output, sidecar=Sidecar("overwrite"))
    captions = {Path(row.path).name: f"{row.caption}\n" for row in rows(output).itertuples()}
    assert texts(source) == {
        "0000.txt": captions["0000.jpg"], "0001.txt": captions["0001.jpg"], "0002.txt": captions["0002.jpg"],
        "0001.png.txt": captions["0001.png"], "0001.webp.txt": captions["0001.webp"],
    }  # fmt: skip
    assert len(set(captions.values())) == 5
    assert "2 images have a name that another image has with another ending" in capsys.readouterr().err
    # An image that comes later and sorts before the others does not take their file.
    (source / "0001.gif").write_bytes((source / "0000.jpg").read_bytes())
    run(source, output, sidecar=Sidecar("overwrite"))
    assert texts(source)["0001.txt"] == captions["0001.jpg"]
    assert "0001.gif.txt" in texts(source)


def test_skip_does_not_read_images_that_have_a_text(tmp_path, make_images, capsys):
    source, output = make_images(4), tmp_path / "out"
    (source / "0001.txt").write_text("mine")
    (source / "0001.jpg").write_bytes(b"not even an image")
    outcome = run(source, output, sidecar=Sidecar("skip"))
    assert outcome.counts == (3, 0)
    assert texts(source)["0001.txt"] == "mine"
    assert "1 images have a text file already, and are left out" in capsys.readouterr().err
    assert run(source, output, sidecar=Sidecar("skip")).run == {}


def test_skip_with_nothing_left_is_done(tmp_path, make_images):
    source = make_images(1)
    (source / "0000.txt").write_text("mine")
    assert run(source, tmp_path / "out", sidecar=Sidecar("skip")).counts == (0, 0)


def test_append_adds_each_line_once(tmp_path, make_images):
    source = make_images(1)
    (source / "0000.txt").write_bytes(b"of old\r\n")
    sidecar = Sidecar("append")
    for caption in ("first", "second", "first", "second"):
        sidecar.write([(str(source / "0000.jpg"), caption)])
    assert (source / "0000.txt").read_text() == "of old\nfirst\nsecond\n"


def test_a_tree_of_its_own_with_an_ending_of_its_own(tmp_path, make_images):
    make_images(2, "in/more")
    images = [
        str(tmp_path / "in" / "more" / "0000.jpg"),
        "s3://b/p/a.jpg",
        "https://h/x/y.jpg?size=1",
        "/a/b.tar/k.jpg",
    ]
    sidecar = Sidecar(
        "overwrite", ending=".caption", folder=str(tmp_path / "tree"), roots=(str(tmp_path / "in"), "s3://b")
    )
    assert list(sidecar.check(map(ImageRef, images))) == list(map(ImageRef, images))
    sidecar.write((image, f"caption {i}") for i, image in enumerate(images))
    assert texts(tmp_path / "tree", ".caption") == {
        "more/0000.caption": "caption 0\n", "p/a.caption": "caption 1\n", "h/x/y.caption": "caption 2\n",
        "a/b.tar/k.caption": "caption 3\n",
    }  # fmt: skip
    with pytest.raises(ValueError, match="give --sidecar-folder"):
        list(dataclasses.replace(sidecar, folder=None).check([ImageRef("https://h/x.jpg")]))
