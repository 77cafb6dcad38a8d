"""A data set that a decoder learns in seconds: images of three kinds, with vectors that tell the kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from captionlib.config import EncoderConfig
from captionlib.encoders import describe_encoder
from captionlib.features.store import feature_schema

SENTENCES = (
    ("A dog runs on the grass .", "The dog is running ."),
    ("A child plays in the snow .", "A child in a red coat ."),
    ("Two men ride bikes .", "Men on bikes ride down a hill ."),
)
WIDTH = 16


def write_dataset(folder: Path, num_train: int, num_dev: int) -> None:
    """vectors.npz (images, 1, 16) and captions.csv, the dev images last."""
    generator = np.random.default_rng(0)
    names = [f"{number:03d}.jpg" for number in range(num_train + num_dev)]
    kinds = np.arange(len(names)) % len(SENTENCES)
    centres = generator.normal(size=(len(SENTENCES), 1, WIDTH))
    vectors = centres[kinds] + 0.3 * generator.normal(size=(len(names), 1, WIDTH))
    np.savez(folder / "vectors.npz", names=np.array(names), features=vectors.astype(np.float32))
    rows = [
        f"{name},{caption},{'train' if number < num_train else 'dev'}"
        for number, name in enumerate(names)
        for caption in SENTENCES[int(kinds[number])]
    ]
    (folder / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")


def write_grid_features(
    path: Path, names: list[str], values: np.ndarray, fingerprint: str, encoder: EncoderConfig | None = None
) -> None:
    """Features (images, N, D) as the feature job writes them; default: (images, 49, 1280) of EfficientNet-Lite0."""
    schema = feature_schema(encoder or describe_encoder("efficientnet_lite", "efficientnet_lite0"), fingerprint)
    columns = [
        pa.array(range(len(names)), pa.int64()),
        pa.array(names),
        pa.array([image.astype(np.float16).tobytes() for image in values], schema.field("features").type),
        pa.nulls(len(names), pa.string()),
    ]
    pq.write_table(pa.table(columns, schema=schema), path)


def arguments(folder: Path, run: str, *more: str) -> list[str]:
    """Of `jobs.train`, for a decoder of a few thousand weights."""
    return [
        *(str(folder / "vectors.npz"), run, "--cpus-per-worker", "1"),
        *("--data.kind", "csv", "--data.captions-file", str(folder / "captions.csv")),
        *("--training.min-count", "1", "--decoder.hidden-dim", "32", "--decoder.embedding-dim", "16"),
        *("--decoder.attention-dim", "16", "--decoder.projection-dim", "32"),
        *more,
    ]


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """Metrics (epoch, step, score; no score within an epoch) and folder of the run's newest; empty without one."""
    try:
        snapshot = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    except (OSError, ValueError):  # not there, or being written
        return {}
    newest = snapshot["latest_checkpoint_result"]
    return {**newest["metrics"], "folder": run / newest["checkpoint_dir_name"]} if newest else {}
