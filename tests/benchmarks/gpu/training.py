"""Captions per second of the default decoder learning from features on a GPU, without Ray: the bare loop.

    python tests/benchmarks/gpu/training.py [--images-per-step 64] [--num-words 2500] [--lengths 8 17]

Random features of the default encoder's shape, five captions of 12 words an image by default. `steps alone` has its
batch on the device already; `loop` draws, stacks and copies batches as `jobs.train` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from captionlib.config import DecoderConfig
from captionlib.decoders import build_decoder
from captionlib.training.batches import Batch, CaptionBatches
from captionlib.training.inputs import FeatureViews, ahead
from captionlib.training.learner import Learner
from captionlib.training.settings import TrainingSettings

NUM_IMAGES, NUM_POSITIONS, WIDTH = 4_000, 81, 1280


def captions_per_second(learner: Learner, batches: Iterable[Batch]) -> float:
    """Over all batches but the first ten."""
    count, started = 0, 0.0
    for number, batch in enumerate(batches):
        if number == 10:
            torch.cuda.synchronize()
            count, started = 0, time.perf_counter()
        learner.step(batch)
        count += batch.num_captions
    torch.cuda.synchronize()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-step", type=int, default=64)
    parser.add_argument("--num-words", type=int, default=2_500, help="in the vocabulary")
    parser.add_argument("--lengths", type=int, nargs=2, default=(8, 17), help="of captions: from, to (exclusive)")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    generator = np.random.default_rng(0)
    features = generator.standard_normal((NUM_IMAGES, NUM_POSITIONS, WIDTH), np.float32).astype(np.float16)
    captions = [
        [generator.integers(4, given.num_words, generator.integers(*given.lengths)).tolist() for _ in range(5)]
        for _ in range(NUM_IMAGES)
    ]
    batches = CaptionBatches(
        FeatureViews([features], np.arange(NUM_IMAGES)), captions, images_per_step=given.images_per_step
    )
    settings = TrainingSettings(images_per_step=given.images_per_step)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for dtype in (torch.bfloat16, None):
        decoder = build_decoder(DecoderConfig(), WIDTH, given.num_words).cuda()
        learner = Learner(decoder, decoder, settings, steps_per_epoch=len(batches), autocast=dtype)
        some = next(iter(batches.epoch(0)))
        fixed = dataclasses.replace(some, features=some.features.cuda())
        print(f"{dtype or 'TF32'}: steps alone {captions_per_second(learner, [fixed] * 60):,.0f} captions/s")
        loop = captions_per_second(learner, ahead(batches.epoch(0)))
        print(f"{dtype or 'TF32'}: loop {loop:,.0f} captions/s", flush=True)
    if given.profile:
        with torch.profiler.profile() as profile:
            for _ in range(5):
                learner.step(fixed)
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=12, max_name_column_width=50))
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=50))


if __name__ == "__main__":
    main()
