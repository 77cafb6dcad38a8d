from __future__ import annotations

import os

import fsspec
import pytest

from captionlib.storage.folder import Folder
from jobs.batch import manifest as module
from jobs.batch.manifest import Manifest
from jobs.inputs.listing import ImageRef
from jobs.inputs.sources import Sources
from jobs.outputs.id_ranges import IdRange
from tests.flaky import flaky_server


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")


def names(root, *inputs):
    return [os.path.relpath(item.path, root) for item in Sources(inputs or (str(root),)).list()]


# --- listing ----------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_in_order_with_what_is_in_it(tmp_path):
    touch(tmp_path, "b.jpg", "a/2.PNG", "a/10.jpeg", "c.txt", ".hidden.jpg", ".git/x.jpg", "d.webp", "z.jpg/y.jpg")
    assert names(tmp_path) == ["a/10.jpeg", "a/2.PNG", "b.jpg", "d.webp", "z.jpg/y.jpg"]
    assert {item.size for item in Sources((str(tmp_path),)).list()} == {5}


def test_names_as_people_give_them(tmp_path):
    odd = ["it's.jpg", 'say "hi".jpg', "two\nlines.jpg", "näïve 写真.jpg", "[a]*?.jpg", "#1 50%.jpg", "-x.jpg"]
    touch(tmp_path, *odd)
    assert names(tmp_path) == sorted(odd)


def test_a_name_that_is_not_utf8_is_listed_too(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    assert names(tmp_path) == ["caf\ufffd.jpg"]


def test_links(tmp_path):
    touch(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "in/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in/pipe.jpg")  # opening one would wait for ever
    assert names(tmp_path / "in") == ["a.jpg", "broken.jpg", "folder/b.jpg"]


def test_a_file_a_pattern_and_a_file_url(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg", "c.png", "d/e.jpg", "scan.dat")
    assert names(tmp_path, str(tmp_path / "scan.dat")) == ["scan.dat"]
    assert names(tmp_path, str(tmp_path / "*.jpg")) == ["a.jpg", "b.jpg"]
    assert names(tmp_path, str(tmp_path / "**/*.jpg")) == ["a.jpg", "b.jpg", "d/e.jpg"]
    assert names(tmp_path, f"file://{tmp_path}/d", str(tmp_path / "c.png")) == ["d/e.jpg", "c.png"]


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, "[a]/x.jpg")
    assert names(tmp_path, str(tmp_path / "[a]")) == ["[a]/x.jpg"]


def test_an_fsspec_url():
    memory = fsspec.filesystem("memory")
    for name in ("/bucket/p/b.jpg", "/bucket/p/a/1.jpg", "/bucket/p/.h/2.jpg", "/bucket/p/notes.txt"):
        memory.pipe_file(name, b"123")
    found = list(Sources(("memory://bucket/p",)).list())
    assert found == [ImageRef("memory:///bucket/p/a/1.jpg", 3), ImageRef("memory:///bucket/p/b.jpg", 3)]
    assert [item.size for item in Sources(("memory://bucket/p/*.jpg",)).list()] == [3]


def test_a_web_folder(tmp_path):
    touch(tmp_path, "photos/a.jpg", "photos/more/b c.jpg", "photos/x.txt")
    with flaky_server(tmp_path) as server:
        found = [item.path.removeprefix(server.url) for item in Sources((f"{server.url}/photos/",)).list()]
    assert found == ["/photos/a.jpg", "/photos/more/b%20c.jpg"]


@pytest.mark.parametrize("given", ["nowhere", "no/*.jpg", "memory://no/such"])
def test_an_input_that_does_not_exist(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        list(Sources((given,)).list())


# --- manifest ---------------------------------------------------------------------------------------------------


def items(*numbers):
    return [ImageRef(f"/in/{n:03d}.jpg", n) for n in numbers]


def test_images_are_numbered_once_and_later_ones_appended(tmp_path):
    folder = Folder.of(str(tmp_path))
    first = Manifest.open(folder).append(items(1, 2, 3))
    assert first.num_images == 3
    second = Manifest.open(folder).append(items(0, 1, 2, 3, 4))
    assert second == Manifest.open(folder)
    assert second.files == (IdRange(0, 2), IdRange(3, 4))
    table = second.read(IdRange(1, 4))
    assert table.column("image_id").to_pylist() == [1, 2, 3, 4]
    assert table.column("path").to_pylist() == ["/in/002.jpg", "/in/003.jpg", "/in/000.jpg", "/in/004.jpg"]
    assert table.column("size").to_pylist() == [2, 3, 0, 4]


def test_an_image_that_two_inputs_hold_counts_once(tmp_path):
    made = Manifest.open(Folder.of(str(tmp_path))).append([*items(1, 2), *items(2, 3)])
    assert made.num_images == 3


def test_large_manifests_are_cut_and_read_in_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 10)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 4)
    made = Manifest.open(Folder.of(str(tmp_path))).append(items(*range(25)))
    assert made.files == (IdRange(0, 9), IdRange(10, 19), IdRange(20, 24))
    for first in range(25):
        for last in range(first, 25):
            assert made.read(IdRange(first, last)).column("size").to_pylist() == list(range(first, last + 1))
    again = made.append(items(*range(30)))
    assert again.files[3:] == (IdRange(25, 29),)


def test_an_interrupted_listing_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 10)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 5)
    folder = Folder.of(str(tmp_path))

    def breaking():
        yield from items(*range(17))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Manifest.open(folder).append(breaking())
    assert Manifest.open(folder).num_images == 10
    assert Manifest.open(folder).append(items(*range(17))).read(IdRange(0, 16)).column("size").to_pylist() == list(
        range(17)
    )


def test_a_hole_in_the_manifest_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_FILE", 10)
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 5)
    folder = Folder.of(str(tmp_path))
    Manifest.open(folder).append(items(*range(30)))
    folder.delete("manifest-000000000010-000000000019.parquet")
    with pytest.raises(ValueError, match="no file for image ids 10 to 19"):
        Manifest.open(folder)


def test_known_paths_stay_known_when_they_are_merged():
    known = module.KnownTexts()
    paths = [f"/in/{i}.jpg" for i in range(250_000)]
    for start in range(0, len(paths), 50_000):
        assert known.add_new(paths[start : start + 50_000]) == list(range(50_000))
    assert known.add_new([*paths[::1000], "/in/new.jpg"]) == [250]
