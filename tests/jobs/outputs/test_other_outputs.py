"""What a job writes and reports beside its Parquet files."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import fsspec
import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch
from stubs import PHOTOS, StubFactory, settings, stub_job

from captionlib.captioners.base import Caption
from captionlib.captioners.checkpoint import LoadedCheckpoint
from captionlib.config import SearchConfig
from captionlib.storage.folder import Folder
from jobs.batch.caption_model import CaptionImages
from jobs.batch.run import run_batch_job
from jobs.caption import main
from jobs.inputs.listing import ImageRef
from jobs.outputs import schemas
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.export import export, formats_there
from jobs.outputs.id_ranges import IdRange
from jobs.outputs.sidecar import Sidecar


def rows(output: Path) -> pandas.DataFrame:
    return pandas.read_parquet(output / "captions").sort_values("image_id").reset_index(drop=True)


# --- JSON lines and CSV -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_jsonl_and_csv_hold_the_same_rows_and_are_kept_up_to_date(tmp_path, make_images):
    source, output = make_images(20), tmp_path / "out"
    (source / 'a "b", c\n.jpg').write_bytes(b"")

    def check(count: int) -> None:
        expected = rows(output)
        assert len(expected) == count
        lines = [json.loads(line) for line in (output / "captions.jsonl").read_text().splitlines()]
        assert [line["caption"] for line in lines] == [c if isinstance(c, str) else None for c in expected.caption]
        assert lines[0]["captions"] == list(expected.captions[0])
        table = pandas.read_csv(output / "captions.csv")
        assert table.columns.tolist() == expected.columns.tolist()
        assert table.path.tolist() == expected.path.tolist()
        assert json.loads(table.captions.dropna().iloc[0]) == list(expected.captions.dropna().iloc[0])

    run_batch_job(stub_job(formats=("csv", "jsonl")), settings(source, output))
    check(21)
    make_images(2, start=50)
    run_batch_job(stub_job(), settings(source, output))  # not asked for again, but they must not go stale
    check(23)
    (output / "captions.csv").unlink()
    assert run_batch_job(stub_job(formats=("csv",)), settings(source, output)).run == {}
    check(23)
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".")) == [
        "captions", "captions.csv", "captions.jsonl", "manifest", "run.json"
    ]  # fmt: skip


def test_a_bucket_has_them_whole_or_not_at_all(monkeypatch):
    output = Folder.of("memory://exported")
    files = ChunkFiles(output / "captions", "captions")
    for first in (0, 2):
        made = [{"image_id": i, "path": f"s3://b/{i}.jpg", "error": "NotFound: gone"} for i in (first, first + 1)]
        files.write(IdRange(first, first + 1), pa.Table.from_pylist(made, schema=schemas.CAPTIONS))
    export(output, files, ["csv", "jsonl"])
    assert formats_there(output, files) == ["jsonl", "csv"]
    assert [json.loads(line)["image_id"] for line in output.read("captions.jsonl").splitlines()] == [0, 1, 2, 3]
    before = output.read("captions.csv")
    assert before.count(b"\n") == 5
    monkeypatch.setattr(ChunkFiles, "read", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(output, files, ["csv"])
    assert output.read("captions.csv") == before


# --- sidecars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "there", "expected"),
    [
        ("skip", None, "<a dog>\n"),
        ("skip", "mine\n", "mine\n"),
        ("overwrite", "mine\n", "<a dog>\n"),
        ("append", None, "<a dog>\n"),
        ("append", "", "<a dog>\n"),
        ("append", "mine", "mine\n<a dog>\n"),
        ("append", "mine\n", "mine\n<a dog>\n"),
    ],
)
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_text_beside_an_image(tmp_path, mode, there, expected, where):
    folder = str(tmp_path) if where == "disk" else f"memory://{tmp_path.name}"
    fs = fsspec.filesystem("file" if where == "disk" else "memory")
    if there is not None:
        fs.pipe_file(f"{folder}/a.b.txt", there.encode())
    sidecar = Sidecar(mode, "<", ">")
    for _ in range(2):  # a chunk that was interrupted is done again
        sidecar.write([(f"{folder}/a.b.jpg", "a dog")])
    assert fs.cat_file(f"{folder}/a.b.txt").decode() == expected
    assert [name.rpartition("/")[2] for name in fs.ls(folder, detail=False)] == ["a.b.txt"]


def test_images_without_a_place_beside_them_are_refused():
    check = Sidecar("overwrite").check
    fine = [ImageRef("/a.jpg"), ImageRef("s3://b/a.jpg")]
    assert list(check(fine)) == fine
    for image in (ImageRef("https://h/a.jpg"), ImageRef("/a.tar/a.jpg", 1, "/a.tar", 512)):
        with pytest.raises(ValueError, match="--sidecar"):
            list(check([image]))


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_job_writes_sidecars_for_what_it_captions(tmp_path, make_images):
    source, output = make_images(12), tmp_path / "out"
    (source / "broken.jpg").touch()
    (source / "0003.txt").write_text("mine\n")
    job = stub_job(sidecar=Sidecar("skip", "photo: "))
    run_batch_job(job, settings(source, output))
    found = {path.name: path.read_text() for path in source.glob("*.txt")}
    assert found.pop("0003.txt") == "mine\n"
    captions = rows(output).dropna(subset="caption")
    expected = {Path(p).stem + ".txt": f"photo: {c}\n" for p, c in zip(captions.path, captions.caption, strict=True)}
    assert "0003.txt" not in expected  # it has a text, so it is not read
    assert found == expected


# --- the model's own faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_caption_without_a_probability_is_an_error(value):
    class Predictor:
        device = torch.device("cpu")

        def caption_pixels(self, pixels, search, image_ids):
            return [[Caption("", value, 0)], [Caption("a dog", -1.0, 2), Caption("a", value, 1)]]

    captioner = LoadedCheckpoint(Predictor(), SearchConfig(), 8)  # type: ignore[arg-type]
    made = CaptionImages(captioner)(np.zeros((2, 4, 4, 3), np.uint8), [0, 1])["captions"]
    assert made["caption"].to_pylist() == [None, "a dog"]
    assert made["log_prob"].to_pylist() == [None, -1.0]
    assert made["captions"].to_pylist() == [None, [{"text": "a dog", "log_prob": -1.0}]]
    first, second = made["error"].to_pylist()
    assert first.startswith("NotFinite: ")
    assert second is None


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_such_an_image_is_counted_as_failed(tmp_path, make_images):
    outcome = run_batch_job(stub_job(StubFactory(unanswered_id=2)), settings(make_images(5), tmp_path / "out"))
    assert outcome.counts == (4, 1)
    found = rows(tmp_path / "out")
    assert found.error.notna().tolist() == [False, False, True, False, False]
    assert found.caption.isna().tolist() == [False, False, True, False, False]


# --- a dry run, and metrics -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_dry_run_writes_nothing(tmp_path, tiny_checkpoint, make_images, capfd):
    source, output = make_images(110), tmp_path / "out"
    (source / "0000.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes())
    (source / "0001.jpg").write_bytes(b"")
    arguments = [str(source), str(output), "--model", str(tiny_checkpoint), "--dry-run"]
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    assert "110 images" in printed
    assert "the first 100: 99 captioned, 1 failed" in printed
    assert "0000.jpg" in printed
    assert "images/s once warm: the remaining 110 would take about" in printed or "too few" in printed
    assert not output.exists()

    assert main([*arguments[:-1], "--no-report"]) == 0
    before = sorted(output.rglob("*"))
    assert main(arguments) == 0
    assert "110 images; 110 have a row already" in capfd.readouterr().out
    assert sorted(output.rglob("*")) == before


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_prometheus_sees_the_counts_of_each_output(tmp_path, make_images):
    outputs = {count: str(tmp_path / f"out-{count}") for count in (9, 4)}
    for count, output in outputs.items():
        source = make_images(count, f"in-{count}")
        (source / "0000.jpg").write_bytes(b"")
        run_batch_job(stub_job(), settings(source, output))
    expected = {
        output: {
            "ray_captionlib_images_done_total": count - 1,
            "ray_captionlib_images_failed_total": 1,
            "ray_captionlib_seconds_total": mock.ANY,
        }
        for count, output in outputs.items()
    }
    # Processes tell Ray of their counts every few seconds.
    found, deadline = _counts(outputs.values()), time.monotonic() + 90
    while found != expected and time.monotonic() < deadline:
        time.sleep(1)
        found = _counts(outputs.values())
    assert found == expected


def _counts(outputs: Iterable[str]) -> dict[str, dict[str, float]]:
    """The counters of each output as the node's Prometheus endpoint has them, summed over their other tags."""
    import ray

    found: dict[str, dict[str, float]] = {output: {} for output in outputs}
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            name, _, tags = line.partition("{")
            output = re.search('output="(.*?)"', tags)
            if name.startswith("ray_captionlib_") and output and output[1] in found:
                counts = found[output[1]]
                counts[name] = counts.get(name, 0.0) + float(line.rpartition(" ")[2])
    return found
