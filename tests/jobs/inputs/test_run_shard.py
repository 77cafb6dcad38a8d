"""`--shard K/N`: which images a run takes, today and for ever."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from typing import Any

import pytest

from captionlib.errors import UserError
from jobs.batch.settings import CaptionSettings
from jobs.inputs.listing import ImageRef
from jobs.inputs.run_shard import RunShard, without_ending
from jobs.inputs.sources import Sources

# What `b2sum -l 64` says of the path without its ending, read from the last byte to the first, modulo N, plus 1. If one
# of these changes, a run that is resumed with a newer version takes other images than it took before.
GOLDEN = {
    "/in/a.jpg": (2, 1, 4, 788),
    "/in/a.PNG": (2, 1, 4, 788),
    "s3://bucket/photos/2024/cat.jpeg": (1, 1, 3, 155),
    "/data/00000.tar/000000017.jpg": (1, 1, 1, 281),
    "/data/train.parquet/17": (2, 3, 2, 402),
    "https://host/img.php?id=5": (1, 3, 7, 751),
    "/in/写真.jpg": (2, 2, 2, 786),
}


@pytest.mark.parametrize("path", GOLDEN)
def test_the_shard_of_a_path_never_changes(path):
    for of, expected in zip((2, 3, 8, 1000), GOLDEN[path], strict=True):
        assert [k for k in range(1, of + 1) if RunShard(of, k).contains(path)] == [expected]


def test_the_hash_is_blake2b_of_the_path_without_its_ending():
    digest = hashlib.blake2b(b"/in/a", digest_size=8).digest()
    assert RunShard(10**6, int.from_bytes(digest, "little") % 10**6 + 1).contains("/in/a.jpg")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/in/a.jpg", "/in/a"),
        ("/in/a.b.JPEG", "/in/a.b"),
        ("/in.jpg/a", "/in.jpg/a"),
        ("/in/.jpg", "/in/.jpg"),
        ("/in/frame.0001", "/in/frame.0001"),  # else all frames of a folder were in one shard
        ("https://host/img.php?id=5", "https://host/img.php?id=5"),
        ("https://host/a.jpg?w=1.5", "https://host/a.jpg?w=1.5"),
        ("a.jpg\n", "a.jpg\n"),
    ],
)
def test_what_an_ending_is(path, expected):
    assert without_ending(path) == expected


def test_shards_are_of_about_the_same_size_and_have_each_image_once():
    paths = [f"/photos/{i:05d}.jpg" for i in range(20_000)]
    counts = Counter(k for path in paths for k in range(1, 9) if RunShard(8, k).contains(path))
    assert sum(counts.values()) == len(paths)
    assert all(abs(counts[k] - 2_500) < 250 for k in range(1, 9))  # five standard deviations


def listed(source, number, of, **more):
    return [os.path.basename(item.path) for item in Sources((str(source),), shard=RunShard(of, number), **more).list()]


def test_images_that_are_added_move_no_other(tmp_path, make_images):
    source = make_images(40)
    before = [listed(source, k, 3) for k in (1, 2, 3)]
    assert sorted(itertools.chain(*before)) == sorted(os.listdir(source))
    assert all(before)
    make_images(40, start=100)
    after = [listed(source, k, 3) for k in (1, 2, 3)]
    assert sorted(itertools.chain(*after)) == sorted(os.listdir(source))
    for old, new in zip(before, after, strict=True):
        assert set(old) <= set(new)
        assert len(new) > len(old)


def test_the_first_image_of_an_input_may_be_of_another_shard(make_images):
    source = make_images(1)
    empty = next(k for k in (1, 2) if not listed(source, k, 2))
    assert Sources((str(source),), shard=RunShard(2, empty)).first(str(source)) is not None


def test_the_damaged_rest_of_a_tar_is_in_one_shard_and_known_to_all(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 100)
    found, known = [], []
    for k in (1, 2, 3):
        sources = Sources((str(tmp_path / "a.tar"),), shard=RunShard(3, k))
        found += list(sources.list())
        known.append(sources.damaged)
    path = str(tmp_path / "a.tar")
    assert found == [ImageRef(path, None, path)]
    assert known == [{path}] * 3


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "3/0", "-1/8", "1/2/3", " 1/2", "", "1.0/2", "٣/٨"])
def test_other_values_are_refused(text):
    with pytest.raises(UserError, match=r"--shard takes K/N with K from 1 to N, such as 3/8 .*, got "):
        CaptionSettings(input="in", output="out", shard=text)


def test_names():
    shard = RunShard.parse("03/8")
    assert (str(shard), shard.folder_name) == ("3/8", "shard-3-of-8")
    assert RunShard.of_folder("shard-3-of-8") == shard
    others = ("shard-9-of-8", "shard-0-of-8", "shard-03-of-8", "shards")
    assert [RunShard.of_folder(name) for name in others] == [None] * 4


def test_two_inputs_share_no_tree_of_text_files_with_other_runs():
    more: dict[str, Any] = {"sidecar": "overwrite", "sidecar_folder": "texts", "shard": "1/2"}
    with pytest.raises(UserError, match="--sidecar-folder with --shard takes one input"):
        CaptionSettings(input="in", also=("more",), output="out", **more)
    assert CaptionSettings(input="in", output="out", **more).run_shard == RunShard(2, 1)
