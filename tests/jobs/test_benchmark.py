"""The benchmark on a few photos, with a captioner small enough; and what it draws from a listing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.benchmark import BenchmarkSettings, main
from jobs.benchmarking import measure
from jobs.inputs.listing import ImageRef

PHOTOS = Path(__file__).parent.parent / "photos"


def test_it_measures_predicts_and_writes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in PHOTOS.glob("*.jpg"):
        (photos / path.name).symlink_to(path)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not a JPEG")
    monkeypatch.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", "/tmp"))
    output = tmp_path / "out"
    arguments = [str(photos), str(output), "--model", str(tiny_checkpoint), "--num-images", "1000000"]
    assert main([*arguments, "--num-nodes", "8", "--price-per-hour", "0.5"]) == 0
    facts = json.loads((output / "benchmark.json").read_text())
    rates = facts["images_per_second"]
    assert all(rates[step] > 0 for step in ("listing", "fetch", "decode", "encoder", "search", "bare loop"))
    count = len(list(photos.iterdir()))
    assert facts["sample"] | {"bytes_per_image": 0} == {
        "images": count, "failed": 1, "bytes_per_image": 0, "seen": count, "all_seen": True,
    }  # fmt: skip
    assert facts["forecast"]["cost"] == pytest.approx(facts["forecast"]["hours"] * 8 * 0.5)
    assert facts["job"]["seconds"] > 1
    printed = capsys.readouterr().out
    assert f"Held up by {facts['bottleneck']['step']}" in printed
    assert "1,000,000 images on 8 such machines" in printed
    page = (output / "benchmark.html").read_text()
    assert "<svg" in page
    assert "bare loop" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["photos", "out", "--num-nodes", "0"], "--num-nodes must be at least 1, got 0"),
        (["photos", "out", "--price-per-hour", "-1"], "--price-per-hour must not be negative"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as exit:
        code = exit.code  # type: ignore[assignment]
    assert code == 2
    assert says in capsys.readouterr().err


def test_a_sample_is_drawn_from_all_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [ImageRef(f"{i}.jpg", 1) for i in range(1000)]
    monkeypatch.setattr(measure.Sources, "list", lambda self: iter(listed))  # type: ignore[attr-defined]
    found = measure.sample_images(["photos"], 100)
    assert (found.num_seen, found.is_complete, len(found.images)) == (1000, True, 100)
    numbers = sorted(int(image.path.partition(".")[0]) for image in found.images)
    assert len(set(numbers)) == 100
    assert sum(number < 500 for number in numbers) in range(35, 66)  # three standard deviations of a fair draw

    found = measure.sample_images(["photos"], 100, seconds=-1)
    assert (found.num_seen, found.is_complete) == (1, False)


def test_settings_have_their_limits() -> None:
    with pytest.raises(ValueError, match="--sample must be at least 1, got 0"):
        BenchmarkSettings(input="photos", output="out", sample=0)


def test_a_model_of_the_hub_is_measured_as_a_whole(
    hub_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def time_job(source: str, output: str, *flags: str) -> measure.JobTimes:
        asked.extend(flags)
        return measure.JobTimes(9.0, 2.0, 4.0, {})

    monkeypatch.setattr(measure, "time_job", time_job)
    model = f"hf:{hub_model('blip')}"
    flags = ["--model", model, "--max-new-tokens", "4", "--dtype", "float32", "--sample", "10"]
    assert main([str(PHOTOS), str(tmp_path / "out"), *flags, "--price-per-hour", "0.1"]) == 0
    facts = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert facts["images_per_second"]["model"] > 0
    assert "encoder" not in facts["images_per_second"]
    assert facts["forecast"]["cost"] > 0
    given = " ".join(asked)
    assert f"--model {model}" in given
    assert "--max-new-tokens 4" in given
    assert "--dtype float32" in given
