"""How fast the training job learns, beside a bare PyTorch loop with the features in memory; and two workers beside one.

    python tests/benchmarks/train_throughput.py
    python tests/benchmarks/train_throughput.py --images 300 --repeats 1 --cores 1

The bare loop is what a script would do at best: the same decoder, loss and optimizer, captions padded beforehand, no
checkpoint, no dev evaluation. The loop has one core. So has the job's worker, and what else the job consists of, its
driver and Ray, has the other ones; with `--cores 1` it is all on one. The job's rate is its own, of the steps of the
epochs after the first. Its driver writes the report of the epoch before meanwhile, which takes seconds, so that epochs
must not be much shorter than real ones. Loop and job take turns, so that a machine that is slower for a while is
slower for both. Two loops at once, each on a core of its own and on half of each step's images, say what two workers
could do at best: half a step takes more than half the time, since the optimizer has as many weights as ever.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

POSITIONS, WIDTH, CAPTIONS_PER_IMAGE, NUM_WORDS = 49, 1280, 5, 3_000
EPOCHS, IMAGES_PER_STEP = 2, 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2, help="1: leave out the comparison of two workers with one")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-arguments.cores :]
    rates: dict[str, list[float]] = {"bare loop": [], "job": []}
    with tempfile.TemporaryDirectory() as folder:
        features, tokens = write_inputs(Path(folder), arguments.images)
        for repeat in range(arguments.repeats):
            os.sched_setaffinity(0, cores[:1])
            rates["bare loop"].append(bare_loop(features, tokens))
            os.sched_setaffinity(0, cores)
            rates["job"].append(job(Path(folder), f"one{repeat}", 1))
            if len(cores) > 1:
                rates.setdefault("2 bare loops on halves", []).append(loops_at_once(features, tokens, cores))
                rates.setdefault("job, 2 workers", []).append(job(Path(folder), f"two{repeat}", 2))
            print(f"run {repeat + 1}: " + ", ".join(f"{name} {found[-1]:.0f}" for name, found in rates.items()))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"\n{arguments.images} images, {IMAGES_PER_STEP} per step, cores {cores}, medians of {arguments.repeats}:")
    for name, rate in medians.items():
        print(f"  {name:<24}{rate:7.0f} captions/s")
    print(f"  job / bare loop         {medians['job'] / medians['bare loop']:.2f}")
    if "job, 2 workers" in medians:
        print(f"  efficiency of 2 workers {medians['job, 2 workers'] / 2 / medians['job']:.2f}")
        print(f"  of the 2 bare loops     {medians['2 bare loops on halves'] / 2 / medians['bare loop']:.2f}")


def write_inputs(folder: Path, num_images: int) -> tuple[np.ndarray, list[list[list[int]]]]:
    """Features and captions of random words as files, and in memory: (I, N, D) float16 and word ids."""
    generator = np.random.default_rng(0)
    dev = IMAGES_PER_STEP
    names = [f"{i:05d}.jpg" for i in range(num_images + dev)]
    features = generator.normal(size=(len(names), POSITIONS, WIDTH)).astype(np.float16)
    np.savez(folder / "features.npz", names=np.array(names), features=features)
    lines, tokens = ["path,caption,split"], []
    for i, name in enumerate(names):
        captions = [
            generator.integers(NUM_WORDS, size=length) for length in generator.integers(7, 16, CAPTIONS_PER_IMAGE)
        ]
        split = "train" if i < num_images else "dev"
        lines += [f"{name},{' '.join(word(number) for number in caption)},{split}" for caption in captions]
        tokens.append([[4 + int(number) for number in caption] for caption in captions])
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return features[:num_images], tokens[:num_images]


def word(number: int) -> str:
    """A word for each number, of letters alone."""
    return "w" + "".join("abcdefghij"[int(digit)] for digit in str(number))


def bare_loop(features: np.ndarray, captions: list[list[list[int]]], images_per_step: int = IMAGES_PER_STEP) -> float:
    """Captions per second of the epochs after the first."""
    import torch
    import torch.nn.functional as F

    from captionlib.config import DecoderConfig
    from captionlib.decoders import build_decoder
    from captionlib.training.batches import pad_captions

    torch.set_num_threads(1)
    torch.manual_seed(0)
    decoder = build_decoder(DecoderConfig(), WIDTH, NUM_WORDS + 4).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    data, tokens = torch.from_numpy(features), pad_captions(captions)
    started = 0.0
    for epoch in range(EPOCHS):
        if epoch == 1:
            started = time.monotonic()
        for images in torch.randperm(len(data)).split(images_per_step):
            output = decoder(data[images].float(), tokens[images])
            loss = F.cross_entropy(output.logits, output.targets, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
            optimizer.step()
    return (EPOCHS - 1) * len(data) * CAPTIONS_PER_IMAGE / (time.monotonic() - started)


def loops_at_once(features: np.ndarray, captions: list[list[list[int]]], cores: list[int]) -> float:
    """Captions per second of loops on two cores, each on half of a step's images, both together."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_loop_on, cores[:2], [features] * 2, [captions] * 2))


def _loop_on(core: int, features: np.ndarray, captions: list[list[list[int]]]) -> float:
    os.sched_setaffinity(0, [core])
    return bare_loop(features, captions, IMAGES_PER_STEP // 2)


def job(folder: Path, run: str, num_workers: int) -> float:
    """Captions per second of the epochs after the first, as the job has them in its metrics."""
    command = [
        *(sys.executable, "-m", "jobs.train", str(folder / "features.npz"), str(folder / run)),
        *("--data.kind", "csv", "--data.captions-file", str(folder / "captions.csv")),
        *("--training.epochs", str(EPOCHS), "--training.images-per-step", str(IMAGES_PER_STEP)),
        *("--training.min-count", "1", "--search.method", "greedy", "--search.max-tokens", "5"),
        *("--num-workers", str(num_workers), "--cpus-per-worker", "1"),
    ]
    # Ray would give its workers a lower priority than the bare loop has.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "RAY_worker_niceness": "0"})
    rows = json.loads((folder / run / "metrics.json").read_text())[1:]
    return statistics.harmonic_mean([row["captions_per_second"] for row in rows])


if __name__ == "__main__":
    main()
