"""The script that Ray Data's documentation leads to: `read_images`, an actor with PyTorch as it comes, Parquet.

    python tests/benchmarks/documentation_script.py FOLDER OUTPUT

https://docs.ray.io/en/latest/data/batch_inference.html, with this project's model and greedy search in the actor,
and the images in the size that this model takes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

ROOT = str(Path(__file__).resolve().parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])  # for Ray's workers
sys.path.insert(0, ROOT)

import ray


class Captioner:
    """Loads the model once, captions batches."""

    def __init__(self) -> None:
        from captionlib.captioners.predictor import Predictor
        from captionlib.config import SearchConfig

        self.predictor = Predictor.from_checkpoint(engine="torch")
        self.search = SearchConfig(method="greedy")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.predictor.caption_pixels(batch["image"], self.search)
        return {"path": batch["path"], "caption": np.array([captions[0].text for captions in found])}


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    from captionlib.checkpoints import read_config, resolve_checkpoint

    side = read_config(resolve_checkpoint()).model.encoder.preprocessing.size
    images = ray.data.read_images(sys.argv[1], size=(side, side), mode="RGB", include_paths=True)
    images.map_batches(Captioner, compute=ray.data.ActorPoolStrategy(size=1), batch_size=32).write_parquet(sys.argv[2])
