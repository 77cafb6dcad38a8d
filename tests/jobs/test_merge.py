"""`python -m jobs.merge`: the outputs of several runs become what one run would have written."""

from __future__ import annotations

import re
import shutil
import tarfile

import fsspec
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from sharded import OF, record_of, rows, run_shards
from stubs import PHOTOS, run_stub

import jobs.caption
import jobs.extract_features
from captionlib.features.store import open_features
from jobs.evaluation.inputs import read_captions
from jobs.merge import main
from tests.buckets import s3_server

pytestmark = pytest.mark.usefixtures("run_in_process")


def test_merged_captions_are_those_of_one_run(tmp_path, tiny_checkpoint, capfd):
    source = tmp_path / "in"
    shutil.copytree(PHOTOS, source)
    (source / "broken.jpg").write_bytes(b"")
    arguments = [str(source), "--model", str(tiny_checkpoint), "--no-report"]
    assert jobs.caption.main([*arguments, str(tmp_path / "one")]) == 0
    for k in range(1, OF + 1):
        assert jobs.caption.main([*arguments, str(tmp_path / "out"), "--shard", f"{k}/{OF}"]) in (0, 1)  # 1: all failed
    capfd.readouterr()

    assert main([str(tmp_path / "out")]) == 0

    printed = capfd.readouterr().out
    assert "10 captioned + 1 failed = 11 planned" in printed
    assert len(re.findall(r"│ \d/3 .* complete ", printed)) == OF
    one, merged = rows(tmp_path / "one"), rows(tmp_path / "out")
    assert merged.image_id.tolist() == list(range(11))
    pandas.testing.assert_frame_equal(
        *(table.sort_values("path").drop(columns=["image_id", "captions"]).reset_index(drop=True)
          for table in (one, merged)), atol=1e-3
    )  # fmt: skip
    assert merged.caption.nunique() > 5
    files = [next((tmp_path / name / "captions").iterdir()) for name in ("one", "out")]
    assert pq.read_schema(files[0]).equals(pq.read_schema(files[1]), check_metadata=True)
    assert len(list(read_captions(str(tmp_path / "out"), dict))) == 11
    manifest = rows(tmp_path / "out", "manifest")
    assert (manifest.image_id.tolist(), manifest.path.tolist()) == (merged.image_id.tolist(), merged.path.tolist())
    ours, theirs = record_of(tmp_path / "out"), record_of(tmp_path / "one")
    assert [ours[k] for k in ("images", "identity", "state", "arithmetic", "not_images", "inputs", "model")] == [
        theirs[k] for k in ("images", "identity", "state", "arithmetic", "not_images", "inputs", "model")
    ]

    assert jobs.caption.main([*arguments, str(tmp_path / "out"), "--jsonl"]) == 0
    assert "Nothing to do: all 11 images have a row." in capfd.readouterr().out
    assert len((tmp_path / "out" / "captions.jsonl").read_text().splitlines()) == 11


def test_merged_features_are_those_of_one_run(tmp_path, tiny_checkpoint, make_images):
    source = make_images(9)
    arguments = [str(source), "--encoder.checkpoint", str(tiny_checkpoint), "--flip", "--images-per-chunk", "2"]
    assert jobs.extract_features.main([*arguments, str(tmp_path / "one")]) == 0
    for k in range(1, OF + 1):
        assert jobs.extract_features.main([*arguments, str(tmp_path / "out"), "--shard", f"{k}/{OF}"]) == 0
    assert main([str(tmp_path / "out"), "--delete-shards"]) == 0
    for folder in ("features", "features_flipped"):
        one, merged = (open_features(str(tmp_path / name / folder)) for name in ("one", "out"))
        assert merged.encoder == one.encoder
        expected = dict(zip(one.paths, one.array, strict=True))
        assert set(merged.paths) == set(expected)
        for path, array in zip(merged.paths, merged.array, strict=True):
            # In chunks of other sizes PyTorch may add up in another order.
            np.testing.assert_allclose(array, expected[path], rtol=2e-3, atol=1e-3)
    assert jobs.extract_features.main([*arguments, str(tmp_path / "out")]) == 0
    assert record_of(tmp_path / "out")["images"] == {"planned": 9, "encoded": 9, "failed": 0}


def test_an_ordinary_run_continues_a_merged_output(sharded, make_images):
    source, output = sharded
    assert main([str(output)]) == 0
    merged = rows(output)
    assert run_stub(source, output).run == {}
    make_images(5, start=50)
    (source / "empty.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    assert (outcome := run_stub(source, output)).images == 5
    assert outcome.counts == (45, 1)
    pandas.testing.assert_frame_equal(rows(output)[:41], merged)
    assert run_stub(source, output, retry_errors=True).counts == (46, 0)
    assert main([str(output)]) == 0  # still merged, and nothing is lost
    assert len(rows(output)) == 46


def test_images_that_only_some_runs_have_seen_are_found_by_the_next_run(tmp_path, make_images):
    """A tar that came after the first run is listed again, although the manifest of the second run has it."""
    photos, output = make_images(60, "photos"), tmp_path / "out"
    for name in ("a.tar", "b.tar", "c.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(photos, "photos")
        if name == "a.tar":
            run_stub(str(tmp_path / "*.tar"), output, shard="1/2")
    run_stub(str(tmp_path / "*.tar"), output, shard="2/2")
    assert main([str(output)]) == 0
    assert run_stub(str(tmp_path / "*.tar"), output).counts == (180, 0)


@pytest.mark.parametrize("where", ["memory", "s3"])
def test_shards_in_a_bucket(tmp_path, make_images, monkeypatch, where, capfd):
    source = make_images(40)
    run_shards(source, tmp_path / "disk")
    assert main([str(tmp_path / "disk")]) == 0
    with s3_server(monkeypatch):
        output = f"{where}://{tmp_path.name}/out"
        run_shards(source, output)
        fs = fsspec.filesystem(where, skip_instance_cache=True, use_listings_cache=False)
        assert main([output, "--check"]) == 0
        assert main([output, "--delete-shards"]) == 0
        assert run_stub(source, output).run == {}
        found = sorted(name.partition("/out/")[2] for name in fs.find(output))
        assert found == sorted(
            str(path.relative_to(tmp_path / "disk"))
            for path in (tmp_path / "disk").rglob("*")
            if path.is_file() and path.name != ".lock" and "shard-" not in str(path)
        )
        for name in found:
            if name.endswith(".parquet"):
                assert fs.cat_file(f"{output}/{name}") == (tmp_path / "disk" / name).read_bytes()


def test_wrong_flags(capsys):
    with pytest.raises(SystemExit):
        main(["out", "--check", "--delete-shards"])
    assert "--check deletes nothing" in re.sub(r"\s+", " ", capsys.readouterr().err)
