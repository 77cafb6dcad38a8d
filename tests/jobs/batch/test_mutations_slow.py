"""20,000 damaged files through a worker's first half: each a picture or an error with a known class, in bounded time.

python -m pytest -m slow -s tests/jobs/test_mutations_slow.py
"""

from __future__ import annotations

import time
import typing
from collections import Counter

import numpy as np
import pytest

from captionlib.config import Preprocessing
from captionlib.images.decode import ErrorKind
from captionlib.images.transforms import EncoderSquare
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.manifest import Manifest
from jobs.batch.ray_pipeline import as_table
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange
from jobs.storage.folder import Folder
from tests.mutations import mutate, originals

PER_PART = 500
SECONDS_PER_PART = 120
KINDS = set(typing.get_args(ErrorKind))


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, count):
    files = originals()
    generator = np.random.default_rng(3)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(count):
        other = files[generator.integers(0, len(files))][1]
        (folder / f"{i:05d}.jpg").write_bytes(mutate(files[i % len(files)][1], other, generator))
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(folder),)).list())
    assert manifest.num_images == count
    decode = DecodeStage(
        manifest, ChunkFiles(Folder.of(str(tmp_path)), "captions"), EncoderSquare(Preprocessing(size=16)), 2
    )
    results: Counter[str] = Counter()
    slowest = 0.0
    for first in range(0, count, PER_PART):
        started = time.monotonic()
        (row,) = decode(as_table(Chunk(IdRange(first, first + PER_PART - 1)))).to_pylist()
        slowest = max(slowest, time.monotonic() - started)
        assert row["status"] == "ready", row["reason"]
        errors = [image["error"] for image in row["images"]]
        assert len(row["pixels"]) == errors.count(None) * 16 * 16 * 3
        results.update("picture" if error is None else error.partition(":")[0] for error in errors)
    print(f"\n{dict(results.most_common())}; slowest {PER_PART} files: {slowest:.1f} s")
    assert results.total() == count
    assert set(results) <= KINDS | {"picture"}
    assert min(results["picture"], results["TruncatedImage"], results["CorruptImage"]) > 0.05 * count
    assert slowest < SECONDS_PER_PART
