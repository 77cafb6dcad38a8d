"""Inputs that are no folders of images: the same images, whatever holds them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stubs import run_stub

from captionlib.storage.folder import Folder
from jobs.batch.manifest import Manifest
from jobs.batch.settings import BatchSettings
from jobs.inputs.reader import ImageReader, image_refs
from jobs.inputs.settings import SourceSettings
from jobs.inputs.sources import Sources
from jobs.outputs.id_ranges import IdRange
from tests.flaky import flaky_server


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, folder: Path, **kind) -> None:
    """As img2dataset writes it: {key}.jpg, {key}.json, {key}.txt."""
    with tarfile.open(path, "w", **kind) as tar:
        for number, file in enumerate(sorted(folder.iterdir())):
            add(tar, f"{number:09d}.json", json.dumps({"url": f"https://h/{number}", "width": 32}).encode())
            add(tar, f"{number:09d}.jpg", file.read_bytes())
            add(tar, f"{number:09d}.txt", f"alt {number}".encode())


def make_parquet(path: Path, folder: Path, column: str = "jpg", rows_per_group: int = 5) -> None:
    files = sorted(folder.iterdir())
    columns = {
        "key": [f"{number:09d}" for number in range(len(files))],
        "width": pa.array(range(len(files)), pa.int32()),
        column: [file.read_bytes() for file in files],
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)


def sources(*inputs: object, **settings) -> Sources:
    return Sources(tuple(map(str, inputs)), SourceSettings(**settings))


def paths(found: Sources, root: Path) -> list[str]:
    return [item.path.removeprefix(f"{root}/") for item in found.list()]


def contents(found: Sources, tmp_path: Path, count: int) -> list[bytes]:
    """The bytes of all images, through a manifest on a disk."""
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(found.list(), columns=found.columns())
    assert manifest.num_images == count
    with ImageReader(found.settings.image_column) as reader:
        return [reader.read(image) for image in image_refs(manifest.read(IdRange(0, count - 1)))]


# --- shards -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"format": tarfile.USTAR_FORMAT}, {"format": tarfile.PAX_FORMAT}])
def test_a_tar_gives_the_bytes_of_its_images(tmp_path, make_images, kind):
    folder = make_images(12)
    make_tar(tmp_path / "00000.tar", folder, **kind)
    found = sources(tmp_path / "00000.tar")
    assert paths(found, tmp_path) == [f"00000.tar/{i:09d}.jpg" for i in range(12)]
    assert contents(found, tmp_path, 12) == [file.read_bytes() for file in sorted(folder.iterdir())]


def test_long_names_in_a_tar(tmp_path):
    name = f"{'ä' * 120}/{'b' * 90}.jpg"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, name, b"12345")
        add(tar, "./c.JPG", b"67")
        add(tar, "__MACOSX/._c.jpg", b"no image")
    found = sources(tmp_path / "a.tar")
    assert paths(found, tmp_path) == [f"a.tar/{name}", "a.tar/c.JPG"]
    assert contents(found, tmp_path, 2) == [b"12345", b"67"]


@pytest.mark.parametrize("rows_per_group", [1, 5, 100])
def test_parquet_gives_the_bytes_of_its_images(tmp_path, make_images, rows_per_group):
    folder = make_images(40)
    make_parquet(tmp_path / "00000.parquet", folder, rows_per_group=rows_per_group)
    found = sources(tmp_path / "00000.parquet")
    assert paths(found, tmp_path)[:2] == ["00000.parquet/0", "00000.parquet/1"]
    expected = [file.read_bytes() for file in sorted(folder.iterdir())]
    assert contents(found, tmp_path, 40) == expected
    with ImageReader() as reader:  # in any order, as threads may ask
        images = list(found.list())
        assert [reader.read(images[i]) for i in (39, 0, 17, 16, 18)] == [expected[i] for i in (39, 0, 17, 16, 18)]


def test_images_as_datasets_writes_them(tmp_path):
    rows = [{"image": {"bytes": b"1", "path": "a.jpg"}}, {"image": {"bytes": None, "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    assert contents(sources(tmp_path / "train.parquet"), tmp_path, 2) == [b"1", b""]


def test_shards_behind_a_url(tmp_path, make_images):
    folder = make_images(10)
    make_tar(tmp_path / "0.tar", folder)
    make_parquet(tmp_path / "0.parquet", folder)
    memory = fsspec.filesystem("memory")
    for name in ("0.tar", "0.parquet"):
        memory.pipe_file(f"/shards/{name}", (tmp_path / name).read_bytes())
    expected = [file.read_bytes() for file in sorted(folder.iterdir())]
    assert contents(sources("memory://shards", input_format="webdataset"), tmp_path / "1", 10) == expected
    assert contents(sources("memory://shards", input_format="parquet"), tmp_path / "2", 10) == expected


def test_a_damaged_tar_is_one_row_more(tmp_path, make_images):
    make_tar(tmp_path / "a.tar", make_images(6))
    whole = (tmp_path / "a.tar").read_bytes()
    header = list(sources(tmp_path / "a.tar").list())[3].offset - 512  # type: ignore[operator]
    for data in (whole[:header], whole[: header + 7], whole[: header + 600], whole[:header] + b"x" * 9_999):
        (tmp_path / "a.tar").write_bytes(data)
        found = list(sources(tmp_path / "a.tar").list())
        assert [item.is_damaged_shard for item in found[:3]] == [False] * 3
        assert [item.is_damaged_shard for item in found[3:]] in ([True], [False, True]), data[header:]
    (tmp_path / "b.tar").write_bytes(b"this is no tar" * 100)
    (damage,) = sources(tmp_path / "b.tar").list()
    assert (damage.path, damage.is_damaged_shard) == (str(tmp_path / "b.tar"), True)


def test_a_tar_that_changes_after_it_was_listed(tmp_path, make_images):
    make_tar(tmp_path / "a.tar", make_images(3))
    image = list(sources(tmp_path / "a.tar").list())[1]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "other.jpg", b"1" * 100_000)
    with pytest.raises(ValueError, match="DamagedShard: .* has changed since"), ImageReader() as reader:
        reader.read(image)


def test_compressed_tars_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is compressed"):
        list(sources(tmp_path / "a.tar.gz").list())


def test_shards_that_are_known_are_not_listed_again(tmp_path, make_images, monkeypatch):
    monkeypatch.setattr("jobs.batch.manifest.ROWS_PER_FILE", 10)
    monkeypatch.setattr("jobs.batch.manifest.ROWS_PER_GROUP", 5)
    folder, shards = make_images(6), tmp_path / "shards"
    shards.mkdir()
    for name in "abcd":
        make_tar(shards / f"{name}.tar", folder)
    found = sources(shards, input_format="webdataset")
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(found.list())
    # Files of 10, 10 and 4 images end in b, d and d: these may have been cut off.
    assert manifest.whole_shards() == {str(shards / "a.tar"), str(shards / "b.tar"), str(shards / "c.tar")}
    (shards / "a.tar").write_bytes(b"")  # would be damage
    make_tar(shards / "e.tar", folder)
    again = manifest.append(found.list(manifest.whole_shards()))
    assert again.num_images == 30
    assert again.read(IdRange(24, 29)).column("shard").unique().to_pylist() == [str(shards / "e.tar")]


# --- manifests --------------------------------------------------------------------------------------------------


def test_manifests_of_all_kinds(tmp_path):
    expected = [str(tmp_path / "a.jpg"), str(tmp_path / "b/ä 1.jpg"), "s3://bucket/c.jpg", "/d.jpg"]
    given = ["a.jpg", "./b/ä 1.jpg", "s3://bucket/c.jpg", "file:///d.jpg"]
    (tmp_path / "1.txt").write_text("\n".join(given) + "\n\n")
    (tmp_path / "2.csv").write_text("id,file_name\n" + "".join(f'{i},"{path}"\n' for i, path in enumerate(given)))
    (tmp_path / "3.tsv").write_text("\ufeffurl\tn\n" + "".join(f"{path}\t{i}\n" for i, path in enumerate(given)))
    pq.write_table(pa.table({"n": range(4), "path": given}), tmp_path / "4.parquet")
    for name in ("1.txt", "2.csv", "3.tsv", "4.parquet"):
        assert [item.path for item in sources(tmp_path / name).list()] == expected, name
    (moved,) = sources(tmp_path / "2.csv", root="s3://b/p", include=("a.jpg",)).list()
    assert moved.path == "s3://b/p/a.jpg"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,where\n1,a.jpg\n", "a.csv has no column .*; it has id, where: .* --path-column"),
        ("a.csv", "path,n\na.jpg,1\n,2\n", "a.csv: row 2 has no path"),
        ("a.parquet", "path\n", "a.parquet cannot be read as Parquet"),
    ],
)
def test_faulty_manifests_are_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(sources(tmp_path / name).list())


def test_a_column_that_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("id;where\n1;a.jpg\n")
    (item,) = sources(tmp_path / "a.csv", path_column="where").list()
    assert item.path == str(tmp_path / "a.jpg")


# --- which images -----------------------------------------------------------------------------------------------


def test_include_and_exclude(tmp_path):
    for name in ("a_front.jpg", "a_back.jpg", "small/a_front.jpg", "small/more/b_front.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert paths(sources(tmp_path, include=("*_front.jpg",)), tmp_path) == [
        "a_front.jpg", "small/a_front.jpg", "small/more/b_front.jpg"
    ]  # fmt: skip
    assert paths(sources(tmp_path, exclude=("small/*",)), tmp_path) == ["a_back.jpg", "a_front.jpg"]
    assert paths(sources(tmp_path, include=("small/*", "a_back.jpg"), exclude=("b_*",)), tmp_path) == [
        "a_back.jpg", "small/a_front.jpg"
    ]  # fmt: skip


def test_by_content(tmp_path, make_images):
    folder = make_images(3)
    (folder / "0001.jpg").rename(folder / "scan")
    (folder / "0002.jpg").rename(folder / "photo.dat")
    (folder / "empty").touch()
    (folder / "notes.txt").write_text("no image")
    assert paths(sources(folder), folder) == ["0000.jpg"]
    assert paths(sources(folder, by_content=True), folder) == ["0000.jpg", "photo.dat", "scan"]
    with flaky_server(folder.parent) as server:
        found = paths(sources(f"{server.url}/in/", by_content=True), server.url)  # type: ignore[arg-type]
    assert found == ["in/0000.jpg", "in/photo.dat", "in/scan"]


# --- columns ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_captions_and_columns_are_the_same_whatever_holds_the_images(tmp_path, make_images):
    folder = make_images(30)
    (folder / "0007.jpg").write_bytes(b"")
    (folder / "0011.jpg").write_bytes(b"no image")
    make_tar(tmp_path / "s.tar", folder)
    make_parquet(tmp_path / "s.parquet", folder)
    table = pa.table({"path": [f"in/{i:04d}.jpg" for i in range(30)], "n": pa.array(range(30), pa.int16())})
    pq.write_table(table, tmp_path / "list.parquet")

    def rows(given, name, *columns):
        run_stub(given, tmp_path / name, source=SourceSettings(columns=columns))
        found = pandas.read_parquet(tmp_path / name / "captions")
        return found.sort_values("image_id").reset_index(drop=True)

    plain = rows(folder, "1")
    tar = rows(tmp_path / "s.tar", "2", "key", "txt", "url", "w=width", "nothing=nowhere")
    parquet = rows(tmp_path / "s.parquet", "3", "key", "original_width=width")
    manifest = rows(tmp_path / "list.parquet", "4", "n")
    for other in (tar, parquet, manifest):
        pandas.testing.assert_frame_equal(other[plain.columns].drop(columns="path"), plain.drop(columns="path"))
    assert manifest.path.tolist() == plain.path.tolist()
    assert tar.txt.tolist() == [f"alt {i}" for i in range(30)]
    assert tar.url.tolist() == [f"https://h/{i}" for i in range(30)]
    assert set(tar.w) == {"32"}
    assert tar.nothing.isna().all()
    assert tar.key.tolist() == parquet.key.tolist() == [f"{i:09d}" for i in range(30)]
    assert parquet.original_width.tolist() == manifest.n.tolist() == list(range(30))
    assert str(manifest.n.dtype) == "int16"
    with pytest.raises(ValueError, match="columns is .*--overwrite"):
        rows(tmp_path / "s.tar", "2")


@pytest.mark.parametrize(
    ("columns", "message"),
    [(("caption",), "NEW_NAME=caption"), (("a", "a"), "twice"), (("=a",), "NAME or NEW=OLD")],
)
def test_faulty_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        BatchSettings(input="a", output="b", source=SourceSettings(columns=columns))


def test_a_column_that_no_input_has(tmp_path):
    (tmp_path / "a.csv").write_text("path,n\na.jpg,1\n")
    with pytest.raises(ValueError, match="no input has a column m"):
        sources(tmp_path / "a.csv", columns=("m",)).columns()
    assert sources(tmp_path / "a.csv", columns=("x=n",)).columns() == pa.schema([("x", pa.string())])
