"""One small Ray for all tests of this folder, and small inputs for them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def _ray_folder() -> Iterator[str]:
    import ray

    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray's sockets allow 107 characters
    yield folder
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_of_two_cpus(_ray_folder: str) -> None:
    """One Ray for all tests, started again if a test of sessions has shut it down."""
    import ray

    # For Ray's processes; the second, so that its workers find the stubs.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.path.dirname(__file__)
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200_000_000,
            _temp_dir=_ray_folder,
        )


@pytest.fixture
def run_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run their two stages in this process, so that a test may patch what they call; no Ray."""
    from stubs import InProcessPipeline

    monkeypatch.setattr("jobs.batch.single_process.is_small_job", lambda *_: True)
    monkeypatch.setattr("jobs.batch.single_process.SingleProcessPipeline", InProcessPipeline)


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` small JPEGs of different colours into a folder."""

    def make(count: int, folder: str = "in", start: int = 0) -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            pixels = np.full((24, 32, 3), (i * 37 % 256, i * 91 % 256, i * 151 % 256), np.uint8)
            Image.fromarray(pixels).save(root / f"{i:04d}.jpg", quality=90)
        return root

    return make


@pytest.fixture
def sharded(make_images: Callable[..., Path], tmp_path: Path, run_in_process: None) -> tuple[Path, Path]:
    """Images, one of them damaged, and an output with three shards of them, none of which is empty."""
    from sharded import run_shards

    source, output = make_images(40), tmp_path / "out"
    (source / "empty.jpg").touch()
    run_shards(source, output)
    return source, output
