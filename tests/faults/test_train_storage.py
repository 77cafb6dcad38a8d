"""Training in a bucket: features from there, checkpoints to there, killed and gone on with, captioned from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captionlib.checkpoints import weights_fingerprint
from captionlib.encoders import build_encoder, describe_encoder
from tests.tiny_training import SENTENCES, write_grid_features

from .harness import PATIENCE, ROOT, Output, Place, run_job
from .inputs import photo
from .processes import Session, wait_until
from .servers import OWNER, READER, ObjectStore

pytestmark = pytest.mark.slow

NUM_TRAIN, NUM_DEV, NUM_PHOTOS = 24, 6, 5


@pytest.fixture
def features(store: ObjectStore, tmp_path: Path) -> str:
    encoder = describe_encoder("efficientnet_lite", "efficientnet_lite0")
    generator = np.random.default_rng(0)
    names = [f"{number:02d}.jpg" for number in range(NUM_TRAIN + NUM_DEV)]
    kinds = np.arange(len(names)) % 3
    shape = (encoder.num_positions, encoder.feature_dim)
    values = generator.normal(size=(3, 1, shape[1]))[kinds] + 0.1 * generator.normal(size=(len(names), *shape))
    write_grid_features(
        tmp_path / "part.parquet", names, values, weights_fingerprint(build_encoder(encoder, pretrained=True))
    )
    data = (tmp_path / "part.parquet").read_bytes()
    store.client().put_object(Bucket="photos", Key="features/features/part.parquet", Body=data)
    rows = [
        f"{name},{caption},{'train' if number < NUM_TRAIN else 'dev'}"
        for number, name in enumerate(names)
        for caption in SENTENCES[int(kinds[number])]
    ]
    captions = "\n".join(["path,caption,split", *rows]).encode()
    store.client().put_object(Bucket="photos", Key="captions.csv", Body=captions)
    return "s3://photos/features"


def start(place: Place, env: dict[str, str], features: str, run: str, name: str) -> Session:
    command = [
        *(sys.executable, "-m", "jobs.train", features, run, "--cpus-per-worker", "1"),
        *("--data.kind", "csv", "--data.captions-file", "s3://photos/captions.csv"),
        *("--training.min-count", "1", "--training.images-per-step", "6", "--training.epochs", "6"),
        *("--training.optimizer.learning-rate", "0.01", "--decoder.hidden-dim", "32", "--decoder.embedding-dim", "16"),
        *("--decoder.attention-dim", "16", "--decoder.projection-dim", "32", "--checkpoint-minutes", "0.0001"),
    ]
    return Session(
        command, env=place.env({**env, "RAY_worker_niceness": "0"}), log=place.folder / f"{name}.log", cwd=ROOT
    )


def test_train_in_a_bucket_and_caption_from_there(store: ObjectStore, features: str, place: Place) -> None:
    output = Output(store.client(), "captions", "runs/first")

    def newest() -> dict[str, Any]:
        if "checkpoint_manager_snapshot.json" not in output.objects():
            return {}
        found = json.loads(output.read("checkpoint_manager_snapshot.json"))["latest_checkpoint_result"]
        return dict(found["metrics"]) if found else {}

    job = start(place, OWNER.env(store.url), features, output.url, "train-first")
    try:
        assert wait_until(lambda: newest().get("step", 0) >= 6 or not job.is_running, PATIENCE)
        assert job.is_running, job.log.read_text()
    finally:
        job.end()
    job = start(place, OWNER.env(store.url), features, output.url, "train-second")
    log = job.finish(PATIENCE)
    assert "going on after epoch" in log
    assert OWNER.secret_key not in log
    there = set(output.objects())
    assert {
        f"best/{name}" for name in ("config.json", "vocabulary.json", "model.safetensors", "model_card.md")
    } <= there
    assert {"metrics.csv", "report.html", "curves.png", "tensorboard/events.out.tfevents.0000000006.epoch"} <= there
    assert len(json.loads(output.read("metrics.json"))) == 6
    # The newest and the best; what the killed run was writing and deleting is gone.
    folders = {key.split("/")[0] for key in there if key.startswith("checkpoint_")} - {
        "checkpoint_manager_snapshot.json"
    }
    assert 1 <= len(folders) <= 2

    for number in range(NUM_PHOTOS):
        store.client().put_object(Bucket="photos", Key=f"five/{number}.jpg", Body=photo(number))
    captions = Output(store.client(), "captions", "from-bucket")
    code, log = run_job(
        place,
        OWNER.env(store.url),
        "s3://photos/five",
        captions.url,
        f"{output.url}/best",  # type: ignore[arg-type]
        "--no-report",
        name="from",
    )
    assert code == 0, log
    assert [row["error"] for row in captions.rows()] == [None] * NUM_PHOTOS
    assert {row["caption"] for row in captions.rows()} != {""}


@pytest.mark.parametrize(("keys", "run"), [(READER, "s3://captions/run"), (OWNER, "s3://no-such-bucket/run")])
def test_a_bucket_that_cannot_be_written(
    keys: Any, run: str, store: ObjectStore, features: str, place: Place, tmp_path: Path
) -> None:
    job = start(place, keys.env(store.url), features, run, f"refused-{tmp_path.name}")
    try:
        code = job.wait(PATIENCE)
    finally:
        job.end()
    log = job.log.read_text()
    assert code == 2, log
    assert f"{run} cannot be written" in log
    assert len(log.strip().splitlines()) == 1
