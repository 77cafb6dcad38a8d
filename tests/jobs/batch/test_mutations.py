"""Damaged files through a worker's first half: each a picture or an error with a known class, in bounded time.

`tests/benchmarks/hostile_images.py` decodes many more of them, and also measures memory.
"""

from __future__ import annotations

import random
import time
import typing
from collections import Counter

from captionlib.config import Preprocessing
from captionlib.images.decode import ErrorKind
from captionlib.images.transforms import EncoderSquare
from captionlib.storage.folder import Folder
from jobs.batch.decode_stage import Chunk, DecodeStage
from jobs.batch.manifest import Manifest
from jobs.batch.ray_pipeline import as_table
from jobs.inputs.sources import Sources
from jobs.outputs.chunk_files import ChunkFiles
from jobs.outputs.id_ranges import IdRange
from tests.mutations import mutate_structure, originals

COUNT = 500
MAX_SECONDS = 120
KINDS = set(typing.get_args(ErrorKind)) - {"DecodeTimeout"}


def test_damaged_files(tmp_path):
    files = originals()
    generator = random.Random(3)
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(COUNT):
        other = generator.choice(files)[1]
        (folder / f"{i:05d}.jpg").write_bytes(mutate_structure(files[i % len(files)][1], other, generator))
    manifest = Manifest.open(Folder.of(str(tmp_path / "m"))).append(Sources((str(folder),)).list())
    assert manifest.num_images == COUNT
    decode = DecodeStage(
        manifest, ChunkFiles(Folder.of(str(tmp_path)), "captions"), EncoderSquare(Preprocessing(size=16)), 2
    )
    started = time.monotonic()
    (row,) = decode(as_table(Chunk(IdRange(0, COUNT - 1)))).to_pylist()
    seconds = time.monotonic() - started
    assert row["status"] == "ready", row["reason"]
    assert row["warnings"] == []
    errors = [image["error"] for image in row["images"]]
    assert len(row["pixels"]) == errors.count(None) * 16 * 16 * 3
    results = Counter("picture" if error is None else error.partition(":")[0] for error in errors)
    assert results.total() == COUNT
    assert set(results) <= KINDS | {"picture"}
    assert min(results["picture"], results["TruncatedImage"], results["CorruptImage"]) > 0.05 * COUNT, results
    assert seconds < MAX_SECONDS
