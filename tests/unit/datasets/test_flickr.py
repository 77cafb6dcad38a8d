from __future__ import annotations

from pathlib import Path

import pytest

from captionlib.datasets import CaptionedImage, DatasetError, read_dataset

TOKENS = (
    "a.jpg#0\tA dog runs .\n"
    "a.jpg#1\tThe dog is running .\n"
    "b.jpg#0\tTwo girls sit .\n"
    "c.jpg#0\tA red car .\n"
    "d.jpg#0\tAn image of no split .\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "Images").mkdir()
    (tmp_path / "Flickr8k.token.txt").write_text(TOKENS)
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("b.jpg\na.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("c.jpg\n")
    return tmp_path


def read(root: Path, kind: str = "flickr8k", **options: str) -> list[CaptionedImage]:
    return read_dataset(kind, str(root), **options)


def test_a_split_has_its_files_images_in_its_order(root: Path) -> None:
    images = f"{root}/Images"
    assert read(root, split="train") == [
        CaptionedImage(f"{images}/b.jpg", ("Two girls sit .",), "train"),
        CaptionedImage(f"{images}/a.jpg", ("A dog runs .", "The dog is running ."), "train"),
    ]
    assert read(root, split="val") == [CaptionedImage(f"{images}/c.jpg", ("A red car .",), "dev")]


def test_all_marks_each_image_with_its_split(root: Path) -> None:
    assert [record.split for record in read(root)] == ["train", "train", "dev", None]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + TOKENS.encode(),
        TOKENS.replace("\n", "\r\n").encode(),
        TOKENS.replace("\n", "\n\n \n").encode(),
        TOKENS.rstrip("\n").encode(),
        TOKENS.replace("A dog runs", " A  dog\u00a0runs").encode(),
    ],
    ids=["byte order mark", "Windows line ends", "blank lines", "no last line end", "white space"],
)
def test_variants_of_the_token_file_read_the_same(root: Path, data: bytes) -> None:
    plain = read(root)
    (root / "Flickr8k.token.txt").write_bytes(data)
    assert read(root) == plain


def test_split_file_with_byte_order_mark_and_windows_line_ends(root: Path) -> None:
    plain = read(root, split="train")
    (root / "Flickr_8k.trainImages.txt").write_bytes(b"\xef\xbb\xbfb.jpg\r\na.jpg\r\n\r\n")
    assert read(root, split="train") == plain


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("e.jpg A caption without a tab", "token.txt:6: expected name.jpg#0<TAB>caption, got 'e.jpg A"),
        ("e.jpg\tno number", "token.txt:6: expected name.jpg#0<TAB>caption"),
        ("e.jpg#0\t  ", "token.txt:6: empty caption of 'e.jpg'"),
        ("a.jpg#1\tAgain .", r"token.txt:6: a.jpg#1 is there twice, first at .*token.txt:2"),
    ],
)
def test_a_wrong_line_is_named(root: Path, line: str, message: str) -> None:
    (root / "Flickr8k.token.txt").write_text(TOKENS + line + "\n")
    with pytest.raises(DatasetError, match=message):
        read(root)


def test_bytes_that_are_not_utf8_are_named_by_line(root: Path) -> None:
    (root / "Flickr8k.token.txt").write_bytes(TOKENS.encode() + "e.jpg#0\tUn café\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"token.txt:6: not UTF-8"):
        read(root)


def test_a_caption_may_hold_a_unicode_line_separator(root: Path) -> None:
    (root / "Flickr8k.token.txt").write_text("a.jpg#0\tA dog\u2028runs\x85.\n", encoding="utf-8")
    (root / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    assert read(root, split="train")[0].captions == ("A dog runs .",)


def test_the_image_that_was_never_published_is_left_out(root: Path) -> None:
    line = "2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n"
    (root / "Flickr8k.token.txt").write_text(TOKENS + line)
    assert len(read(root)) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("b.jpg\nx.jpg\ny.jpg\n", r"trainImages.txt: 2 of 3 images have no captions: x.jpg, y.jpg"),
        ("b.jpg\nb.jpg\n", r"trainImages.txt:2: 'b.jpg' is listed twice, first at .*:1"),
        ("\n", r"trainImages.txt: empty; expected one image name per line"),
    ],
)
def test_wrong_split_files(root: Path, names: str, message: str) -> None:
    (root / "Flickr_8k.trainImages.txt").write_text(names)
    with pytest.raises(DatasetError, match=message):
        read(root, split="train")


def test_an_image_in_two_splits_is_an_error(root: Path) -> None:
    (root / "Flickr_8k.devImages.txt").write_text("a.jpg\nc.jpg\n")
    with pytest.raises(DatasetError, match=r"devImages.txt: .*a.jpg' is in the train split too"):
        read(root)


def test_a_missing_file_says_what_it_should_be(root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"Flickr_8k.testImages.txt.*test split.*one image name per line.*split_file"
    ):
        read(root, split="test")
    with pytest.raises(
        DatasetError, match=r"nowhere: not found; images_root should be the folder of Flickr8k's images"
    ):
        read(root, images_root="nowhere")
    (root / "Flickr8k.token.txt").unlink()
    with pytest.raises(DatasetError, match=r"Flickr8k.token.txt.*name.jpg#0<TAB>caption.*captions_file"):
        read(root)
    with pytest.raises(DatasetError, match="nowhere: not found; root should be the dataset's folder"):
        read(root / "nowhere")


def test_captions_need_no_images(root: Path) -> None:
    (root / "Images").rmdir()
    assert {record.path for record in read(root, split="train")} == {f"{root}/a.jpg", f"{root}/b.jpg"}


def test_explicit_paths_take_precedence(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine.txt").write_text("d.jpg\n")
    records = read(root, split="test", split_file=str(elsewhere / "mine.txt"), images_root=str(elsewhere))
    assert records == [CaptionedImage(f"{elsewhere}/d.jpg", ("An image of no split .",), "test")]


def test_kaggle_captions_txt(root: Path) -> None:
    (root / "Flickr8k.token.txt").unlink()
    (root / "captions.txt").write_text(
        'image,caption\na.jpg,A dog runs .\na.jpg,"A dog , running ."\nb.jpg,"A ""mad"" girl ."\n'
    )
    assert [record.captions for record in read(root, split="train")] == [
        ('A "mad" girl .',),
        ("A dog runs .", "A dog , running ."),
    ]


def test_flickr30k_results_csv_with_its_missing_bar(tmp_path: Path) -> None:
    (tmp_path / "flickr30k_images").mkdir()
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n"
        '1.jpg| 0| A man in a " yes | no " shirt .\n'
        "1.jpg| 1| A man .\n"
        "2.jpg| 4   A dog runs across the grass .\n"
    )
    (tmp_path / "val.txt").write_text("2\n")  # Flickr30k Entities lists names without extension
    assert [record.captions for record in read(tmp_path, "flickr30k")] == [
        ('A man in a " yes | no " shirt .', "A man ."),
        ("A dog runs across the grass .",),
    ]
    assert read(tmp_path, "flickr30k", split="dev")[0].path == f"{tmp_path}/flickr30k_images/2.jpg"


def test_flickr30k_comma_form_and_token_form(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "captions.txt").write_text("image_name,comment_number,comment\n1.jpg,0,A man .\n")
    from_commas = read(tmp_path, "flickr30k")
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tA man .\n")
    assert from_commas == read(tmp_path, "flickr30k")


def test_a_wrong_line_of_results_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\n1.jpg| x| A man .\n")
    with pytest.raises(DatasetError, match=r"results.csv:2: expected name.jpg\| 0\| caption, got '1.jpg\| x"):
        read(tmp_path, "flickr30k")


def test_urls_are_read_and_joined() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/flickr/Flickr8k.token.txt", TOKENS.encode())
    memory.pipe("/flickr/Images/a.jpg", b"")
    memory.pipe("/flickr/names.txt", b"a.jpg\n")
    records = read_dataset("flickr8k", "memory://flickr", split="train", split_file="memory://flickr/names.txt")
    assert [record.path for record in records] == ["memory://flickr/Images/a.jpg"]
