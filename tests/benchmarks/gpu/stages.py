"""Rates of the parts of captioning on a GPU, in one process, from pixels: copy, encoder, search, and all of it.

    python tests/benchmarks/gpu/stages.py [--images 512] [--checkpoint DIR]

Prints images per second, medians of several rounds. `caption, 2 threads` is what an actor of `jobs.caption` does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from captionlib.captioners.predictor import Predictor
from captionlib.config import SearchConfig

GREEDY = SearchConfig(method="greedy")
BEAM = SearchConfig(method="beam", beam_width=8, no_repeat_ngram=2, length_penalty=0.65)


def rate(work: Callable[[], object], images: int, rounds: int = 7) -> float:
    """Images per second: the median of some rounds, after two that do not count."""
    seconds = []
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    return images / statistics.median(seconds)


def smooth_pictures(count: int, side: int) -> np.ndarray:
    """Pictures (count, side, side, 3) that are captioned in a sentence; noise would be captioned in a word or two."""
    small = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    large = torch.nn.functional.interpolate(
        torch.from_numpy(small).permute(0, 3, 1, 2).float(), (side, side), mode="bicubic"
    )
    return large.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def measure(predictor: Predictor, pixels: np.ndarray) -> dict[str, list[str]]:
    """Print all rates of a predictor; its captions by search."""
    n, captions = len(pixels), {}
    print(f"copy to pinned memory and device {rate(lambda: torch.from_numpy(pixels).pin_memory().cuda(), n):,.0f}")
    print(f"engine, copy included {rate(lambda: predictor.engine(pixels), n):,.0f}")  # type: ignore[misc]
    features = predictor.engine(pixels)  # type: ignore[misc]
    for name, search in (("greedy", GREEDY), ("beam 8", BEAM)):
        alone = rate(lambda s=search: predictor._caption(features, s, None), n)  # type: ignore[misc]
        print(f"search alone, {name} {alone:,.0f}")
        found = predictor.caption_pixels(pixels, search)
        words = statistics.mean(of_image[0].num_tokens or 0 for of_image in found)
        captions[name] = [of_image[0].text for of_image in found]
        one = rate(lambda s=search: predictor.caption_pixels(pixels, s), n)  # type: ignore[misc]
        print(f"caption, 1 thread, {name} {one:,.0f} ({words:.1f} words)")
        for threads in (2, 3):
            with ThreadPoolExecutor(threads) as pool:

                def many(s=search, pool=pool):
                    list(pool.map(lambda _: predictor.caption_pixels(pixels, s), range(8)))

                print(f"caption, {threads} threads, {name} {rate(many, 8 * n, rounds=3):,.0f}", flush=True)
    return captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--checkpoint")
    given = parser.parse_args()
    n = given.images
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    captions = {}  # type: ignore[var-annotated]
    for kind in ("auto", "compiled"):
        started = time.perf_counter()
        predictor = Predictor.from_checkpoint(given.checkpoint, engine=kind)
        pixels = smooth_pictures(n, predictor.preprocessing.size)
        predictor.engine(pixels)  # type: ignore[misc]
        torch.cuda.synchronize()
        print(f"== {kind}: first batch after {time.perf_counter() - started:.1f} s, engine {predictor.engine.name}")  # type: ignore[union-attr]
        captions |= {(kind, name): texts for name, texts in measure(predictor, pixels).items()}
    for name in ("greedy", "beam 8"):
        a, b = captions["auto", name], captions["compiled", name]
        print(f"captions equal, graph and compiled, {name}: {sum(x == y for x, y in zip(a, b, strict=True))} of {n}")
    host = Predictor.from_checkpoint(given.checkpoint, device="cpu", engine="torch")
    few = [of_image[0].text for of_image in host.caption_pixels(pixels[:32], GREEDY)]
    same = sum(x == y for x, y in zip(few, captions["auto", "greedy"], strict=False))
    print(f"captions equal, bfloat16 encoder on the GPU and float32 on the CPU, greedy: {same} of 32")


if __name__ == "__main__":
    main()
