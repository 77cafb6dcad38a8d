"""Every kind of input that people have, with its right answer: a caption, an error, or a count of what is left out.

The files are made here; the stub's caption names the colour of the middle pixel.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pillow_heif
import pillow_jxl  # noqa: F401  registers itself with Pillow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stubs import run_stub

from jobs.inputs.settings import SourceSettings

pillow_heif.register_heif_opener()
pytestmark = pytest.mark.usefixtures("run_in_process")

COLOUR = (200, 40, 40)


def image_bytes(name: str, size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOUR).save(file, name, **options)
    return file.getvalue()


def noise_jpeg() -> bytes:
    """A file of which no half is grey."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def gigantic_png() -> bytes:
    """It states 20,000 × 20,000 pixels."""
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big") + b"\0\0\0\4IDATabcd"


JPEG = image_bytes("JPEG")
NOISE = noise_jpeg()
GREY = io.BytesIO()
Image.new("RGB", (96, 64), (128, 128, 128)).save(GREY, "JPEG")

# name of the file → its bytes, and the beginning of its error; "" for a caption, None where it is left out by its name
FILES: dict[str, tuple[bytes, str | None]] = {
    "a.jpg": (JPEG, ""),
    "b.JPEG": (JPEG, ""),
    "saved by windows.jfif": (JPEG, ""),
    "old.jpe": (JPEG, ""),
    "older.jif": (JPEG, ""),
    "stereo.mpo": (JPEG, ""),
    "phone.heic": (image_bytes("HEIF"), ""),
    "phone.HEIF": (image_bytes("HEIF"), ""),
    "scan.jp2": (image_bytes("JPEG2000"), ""),
    "scan.j2k": (image_bytes("JPEG2000", no_jp2=True), ""),
    "new.jxl": (image_bytes("JXL"), ""),
    "web.webp": (image_bytes("WEBP"), ""),
    "web.avif": (image_bytes("AVIF"), ""),
    "drawing.png": (image_bytes("PNG"), ""),
    "animation.gif": (image_bytes("GIF"), ""),
    "paper.tif": (image_bytes("TIFF"), ""),
    "paint.bmp": (image_bytes("BMP"), ""),
    "paint.dib": (image_bytes("BMP"), ""),
    "its name lies.jpg": (image_bytes("PNG"), ""),
    "phone photo called.jpg": (image_bytes("HEIF"), ""),
    "without its end marker.jpg": (NOISE[:-2], ""),
    "grey.jpg": (GREY.getvalue(), ""),
    "cut.jpg": (NOISE[: len(NOISE) // 2], "TruncatedImage"),
    "cut and closed.jpg": (NOISE[: len(NOISE) // 2] + b"\xff\xd9", "TruncatedImage"),
    "cut.heic": (image_bytes("HEIF")[:200], "TruncatedImage"),
    "cut.png": (image_bytes("PNG", compress_level=0)[:2_000], "TruncatedImage"),
    "empty.jpg": (b"", "EmptyFile"),
    "page.jpg": (b"<!doctype html><title>404", "NotAnImage"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "NotAnImage"),
    "drawing called.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "UnsupportedImage"),
    "film called.jpg": (b"\0\0\0\x18ftypmp42" + bytes(60), "UnsupportedImage"),
    "gigantic.png": (gigantic_png(), "ImageTooLarge"),
    "notes.txt": (b"no image", None),
    "more notes.txt": (b"no image", None),
    "texture.tga": (bytes(100), None),
    "favicon.ico": (bytes(100), None),
    "drawing.svg": (b"<svg/>", None),
    "picture.ppm": (b"P6 1 1 255 abc", None),
    "archive.zip": (b"PK", None),
    "README": (b"", None),
    ".DS_Store": (b"", None),
    "._a.jpg": (b"\0\5\x16\7", None),
}
LEFT_OUT = {
    ".txt": 2, "hidden": 2, ".tga": 1, ".ico": 1, ".svg": 1, ".ppm": 1, ".zip": 1, "without an ending": 1
}  # fmt: skip
READ = {name: error for name, (_, error) in FILES.items() if error is not None}


def in_folder(root: Path) -> Path:
    folder = root / "photos"
    folder.mkdir()
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def in_tar(root: Path) -> Path:
    with tarfile.open(root / "photos.tar", "w") as tar:
        for name, (data, _) in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root / "photos.tar"


def in_parquet(root: Path) -> Path:
    rows = [{"image": {"bytes": FILES[name][0], "path": name}, "n": i} for i, name in enumerate(READ)]
    pq.write_table(pa.Table.from_pylist(rows), root / "photos.parquet")
    return root / "photos.parquet"


def in_list(ending: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        names = [f"photos/{name}" for name in READ]
        in_folder(root)
        path = root / f"list{ending}"
        if ending == ".txt":
            path.write_text("\n".join(names))
        elif ending == ".jsonl":
            path.write_text("".join(json.dumps({"file_name": name, "n": i}) + "\n" for i, name in enumerate(names)))
        elif ending == ".ndjson":
            path.write_text("".join(json.dumps(name) + "\n" for name in names))
        else:
            table = pandas.DataFrame({"file_name": names})
            table.to_csv(path, index=False) if ending == ".csv" else table.to_parquet(path)
        return path

    return make


def table(output: Path) -> pandas.DataFrame:
    return pandas.read_parquet(output / "captions").sort_values("image_id").reset_index(drop=True)


def kinds(output: Path) -> dict[str, str]:
    """The kind of error by the name of the file; "" for a caption."""
    rows = table(output)
    names = rows.path.str.rpartition("/")[2]
    return dict(zip(names, rows.error.fillna("").str.partition(":")[0], strict=True))


@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        pytest.param(in_folder, LEFT_OUT, id="folder"),
        pytest.param(in_tar, {k: n for k, n in LEFT_OUT.items() if k != "hidden"} | {".txt": 2}, id="tar"),
        pytest.param(in_parquet, {}, id="Parquet"),
        *(pytest.param(in_list(e), {}, id=e) for e in (".txt", ".csv", ".jsonl", ".ndjson", ".parquet")),
    ],
)
def test_every_file_has_its_right_answer(tmp_path, make, left_out):
    outcome = run_stub(make(tmp_path), tmp_path / "out")
    found = kinds(tmp_path / "out")
    if make is in_tar:  # members of one sample share their name up to the first dot
        found = {name: found[name] for name in READ}
    assert found == READ
    assert dict(outcome.left_out) == left_out
    rows = table(tmp_path / "out")
    plain = rows[rows.error.isna() & ~rows.path.str.contains("end marker|grey")]
    for caption in plain.caption:
        colour = [int(word) for word in caption.split()[1:]]
        assert colour == pytest.approx(COLOUR, abs=6)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["not_images"] == left_out
    assert record["images"]["planned"] == len(READ)


def test_by_content_nothing_is_left_out_for_its_name(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "without an ending").write_bytes(JPEG)
    (folder / "download.php").write_bytes(image_bytes("HEIF"))
    (folder / "notes.txt").write_text("no image")
    outcome = run_stub(folder, tmp_path / "out", source=SourceSettings(by_content=True))
    assert (outcome.counts, dict(outcome.left_out)) == ((2, 0), {".txt": 1})


def test_an_imagefolder_brings_its_columns(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "in" / split
        (folder / "more").mkdir(parents=True)
        for name in ("a.jpg", "more/b.jpg", "c.jpg"):
            (folder / name).write_bytes(JPEG)
        lines = [
            {"file_name": "more/b.jpg", "text": f"{split} b", "tags": [1, 2]},
            {"file_name": "a.jpg", "text": None},
        ]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_stub(tmp_path / "in", tmp_path / "out", source=SourceSettings(columns=("text", "tags")))
    rows = table(tmp_path / "out")
    assert rows.path.str.removeprefix(f"{tmp_path}/in/").tolist() == [
        "test/more/b.jpg", "test/a.jpg", "train/more/b.jpg", "train/a.jpg", "test/c.jpg", "train/c.jpg"
    ]  # fmt: skip
    assert rows.text.fillna("").tolist() == ["test b", "", "train b", "", "", ""]
    assert rows.tags.fillna("").tolist() == ["[1, 2]", "", "[1, 2]", "", "", ""]


def test_only_images_without_a_caption(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.jpg").write_bytes(JPEG)
    rows = [("a.jpg", "a dog"), ("b.jpg", ""), ("c.jpg", None), ("d.jpg", "  ")]
    pandas.DataFrame(rows, columns=["file_name", "caption"]).to_csv(tmp_path / "list.csv", index=False)
    (tmp_path / "a.jpg").unlink()  # it is not read
    outcome = run_stub(tmp_path / "list.csv", tmp_path / "out", source=SourceSettings(only_missing="caption"))
    assert outcome.counts == (3, 0)
    with pytest.raises(ValueError, match="has no column text, .* it has file_name, caption"):
        run_stub(tmp_path / "list.csv", tmp_path / "out2", source=SourceSettings(only_missing="text"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n", "line 1 is no JSON"), ("[1]\n", "every line must be an object or a path"), ('{"a": 1}\n', "no column")],
)
def test_json_lines_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        run_stub(tmp_path / "list.jsonl", tmp_path / "out")


def test_a_list_of_things_that_are_no_files(tmp_path):
    """One row each, whatever the line holds."""
    lines = [
        "photo that is gone.jpg",
        "data:image/png;base64," + base64.b64encode(image_bytes("PNG", (2, 2))).decode(),
        "http://[broken/a.jpg",
        "x" * 5_000,
        ".",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    outcome = run_stub(tmp_path / "list.txt", tmp_path / "out")
    assert outcome.counts == (0, 5)
    found = table(tmp_path / "out").error.str.partition(":")[0].tolist()
    assert found == ["NotFound", "NotFound", "InvalidUrl", "NotFound", "NotAFile"]


def with_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_names_in_tars_that_other_readers_trip_over(tmp_path):
    """Dots in names (webdataset #237, datasets #6880), and a name that comes twice (webdataset #157)."""
    members = [("22.05.jpg", JPEG), ("22.05.txt", b"five"), ("22.06.jpg", JPEG), ("22.06.txt", b"six")]
    members += [("v1.0/a.jpg", JPEG), ("v1.0/a.txt", b"a"), ("b.jpg", JPEG), ("b.jpg", NOISE)]
    given = with_tar(tmp_path / "a.tar", members)
    outcome = run_stub(given, tmp_path / "out", source=SourceSettings(columns=("txt", "key")))
    assert outcome.counts == (5, 0)
    rows = table(tmp_path / "out")
    assert rows.path.str.removeprefix(f"{given}/").tolist() == [
        "22.05.jpg",
        "22.06.jpg",
        "v1.0/a.jpg",
        "b.jpg",
        "b.jpg#2",
    ]
    assert rows.txt.fillna("").tolist() == ["five", "six", "a", "", ""]


def test_what_is_listed_twice_is_said(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "list.txt").write_text("a.jpg\n./a.jpg\na.jpg\n")
    assert run_stub(tmp_path / "list.txt", tmp_path / "out").counts == (1, 0)
    assert "2 images are listed more than once, and captioned once" in capsys.readouterr().err


def test_metadata_of_all_splits_in_one_file(tmp_path):
    """datasets #4548."""
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / "a.jpg").write_bytes(JPEG)
    lines = [{"file_name": f"{split}/a.jpg", "text": split} for split in ("train", "test")]
    (tmp_path / "in" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_stub(tmp_path / "in", tmp_path / "out", source=SourceSettings(columns=("text",)))
    assert table(tmp_path / "out").text.tolist() == ["train", "test"]


def test_a_png_with_a_wrong_checksum_in_a_text(tmp_path):
    """Pillow #8669 and #6843: browsers show it."""
    data = image_bytes("PNG")
    text = b"tEXtComment\0hello"
    chunk = len(text[4:]).to_bytes(4, "big") + text + b"\0\0\0\0"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(data[:33] + chunk + data[33:])
    assert run_stub(tmp_path / "in", tmp_path / "out").counts == (1, 0)


def test_links_and_names(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    os.link(folder / "a.jpg", folder / "hard.jpg")
    (folder / "soft.jpg").symlink_to("a.jpg")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "circle").symlink_to(folder)
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "ünï 写真 #1 %20?.jpg").write_bytes(JPEG)
    run_stub(folder, tmp_path / "out")
    assert kinds(tmp_path / "out") == {
        "a.jpg": "", "hard.jpg": "", "soft.jpg": "", "gone.jpg": "NotFound", "ünï 写真 #1 %20?.jpg": ""
    }  # fmt: skip
