"""The jobs from a folder that holds the source, in an environment that has the dependencies only."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

import captionlib
from tests.uninstalled import copy_source, environment_variables, make_environment

PHOTOS = Path(__file__).parent.parent / "photos"


def test_features_training_captions_and_scores_from_a_folder(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "environment")
    source = copy_source(tmp_path / "source")
    ray_folder = tempfile.mkdtemp(prefix="ray-")  # short, because of the sockets in it
    env = environment_variables(python, ray_folder, tmp_path)

    def run(job: str, *arguments: object) -> None:
        command = [str(python), "-m", f"jobs.{job}", *map(str, arguments)]
        made = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=300)
        assert made.returncode == 0, made.stdout + made.stderr

    photos = tmp_path / "photos"
    photos.mkdir()
    rows = ["path,caption,split"]
    for i, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        shutil.copy(photo, photos / photo.name)
        rows.append(f"{photo.name},a photo of the {photo.stem.replace('_', ' ')},{'dev' if i < 3 else 'train'}")
    captions = tmp_path / "captions.csv"
    captions.write_text("\n".join(rows) + "\n")
    features, trained, output = tmp_path / "features", tmp_path / "run", tmp_path / "out"
    try:
        run("extract_features", photos, features)
        run(
            "train", features, trained, "--data.kind", "csv", "--data.captions-file", captions,
            "--cpus-per-worker", 1, "--training.epochs", 2, "--training.min-count", 1,
            "--training.images-per-step", 4, "--decoder.hidden-dim", 32, "--max-failures", 0,
        )  # fmt: skip
        run("caption", photos, output, "--model", trained / "best")
        run("evaluate", output, captions, "--kind", "csv", "--no-java", "--output", tmp_path / "scores")
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert [row["epoch"] for row in json.loads((trained / "metrics.json").read_text())] == [1, 2]
    assert pq.read_table(output / "captions").num_rows == len(rows) - 1
    assert f"captionlib:{captionlib.__version__}" in (tmp_path / "scores" / "scores.json").read_text()
    assert json.loads((output / "run.json").read_text())["runs"][0]["versions"]["captionlib"] == captionlib.__version__
