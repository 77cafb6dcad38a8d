"""What every training worker runs: steps, then captions of the dev images, then a checkpoint, epoch after epoch."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from captionlib.captioner import Captioner
from captionlib.checkpoints import load_weights
from captionlib.decoders import Decoder, build_decoder
from captionlib.features import FeatureStore, open_features
from captionlib.metrics import CiderD, score_captions
from captionlib.text import detokenize
from captionlib.training.batches import CaptionBatches
from captionlib.training.learner import Learner
from captionlib.training.self_critical import SelfCritic
from captionlib.vocabulary import PAD, Vocabulary
from jobs.train_data import Split, read_split, starting_point
from jobs.train_settings import TrainSettings

STATE = "state.pt"
_POST_EVERY_SECONDS = 2.0
_CAPTION_BATCH = 50


def train_worker(config: dict[str, Any]) -> None:
    """One worker's run, from the last checkpoint if there is one."""
    import ray.train
    import ray.train.torch

    settings: TrainSettings = config["settings"]
    vocabulary = Vocabulary(config["vocabulary"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(config["cpus_per_worker"])
    torch.manual_seed(settings.training.seed + rank)

    store = open_features(settings.features)
    views = [store.array, *(open_features(url).array for url in settings.also_features)]
    train, dev = (read_split(settings, store, name) for name in (settings.data.train_split, settings.data.dev_split))
    batches = make_batches(settings, views, train, vocabulary, rank, world_size)
    dev_batches = make_batches(settings, views[:1], dev, vocabulary, rank, world_size)

    torch.manual_seed(settings.training.seed)  # every worker starts from the same weights
    decoder = build_decoder(settings.decoder, store.encoder.feature_dim, len(vocabulary)).to(device)
    if settings.start_from is not None:
        weights = starting_point(settings).weights
        prefix = "decoder."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        load_weights(decoder, own, settings.start_from)
    model = torch.nn.parallel.DistributedDataParallel(decoder) if world_size > 1 else decoder
    learner = Learner(
        model,
        decoder,
        settings.training,
        steps_per_epoch=len(batches),
        world_size=world_size,
        autocast=torch.bfloat16 if device.type == "cuda" else None,
        critic=_critic(settings, train, vocabulary),
    )
    torch.manual_seed(settings.training.seed + 1 + rank)  # but drops out differently
    first_epoch, history = _resume(learner, rank)
    if history and rank == 0:
        _post(config, {"text": f"going on after epoch {len(history)} of {settings.training.epochs}"})

    for epoch in range(first_epoch, settings.training.epochs):
        started = time.monotonic()
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "learning_rate": learner.learning_rate,
            "teacher_forcing": learner.teacher_forcing,
        }
        row |= _train_epoch(learner, batches, epoch, config, rank)
        row["train_seconds"] = time.monotonic() - started
        with learner.averaged_weights():
            row["dev_loss"] = _dev_loss(learner, dev_batches)
            row |= _dev_scores(decoder, store, dev, vocabulary, settings, rank, world_size)
        row["seconds"] = time.monotonic() - started
        history.append(row)
        if rank == 0:
            _post(config, {"text": _describe(row, settings)})
        _report(learner, row, history, rank, world_size)


def _critic(settings: TrainSettings, train: Split, vocabulary: Vocabulary) -> SelfCritic | None:
    """What rewards captions, where the settings give rewards a weight."""
    if not settings.training.self_critical.weight:
        return None
    return SelfCritic(
        CiderD.from_references(train.tokens, eos=True),
        vocabulary,
        num_samples=settings.training.self_critical.num_samples,
        max_tokens=settings.search.max_tokens,
        seed=settings.training.seed,
    )


def make_batches(
    settings: TrainSettings,
    views: list[Any],
    split: Split,
    vocabulary: Vocabulary,
    rank: int,
    world_size: int,
) -> CaptionBatches:
    """A split's batches for one worker."""
    training = settings.training
    return CaptionBatches(
        views,
        split.rows,
        [[vocabulary.encode(caption) for caption in image] for image in split.tokens],
        images_per_step=training.images_per_step,
        choice=training.captions,
        max_tokens=training.max_tokens,
        seed=training.seed,
        rank=rank,
        world_size=world_size,
    )


def _train_epoch(
    learner: Learner, batches: CaptionBatches, epoch: int, config: dict[str, Any], rank: int
) -> dict[str, float]:
    """One epoch's updates; its mean cross-entropy per word, in nats, and mean reward, where there are rewards."""
    total, words, captions, started = 0.0, 0, 0, time.monotonic()
    rewards: list[float] = []
    last_post = started
    for step, batch in enumerate(batches.epoch(epoch), start=1):
        loss, count = learner.step(batch)
        total, words = total + loss, words + count
        rewards += [] if learner.reward is None else [learner.reward]
        captions += int((batch.tokens[..., 0] != PAD).sum()) * learner.world_size
        now = time.monotonic()
        if rank == 0 and now - last_post > _POST_EVERY_SECONDS:
            last_post = now
            done = step + epoch * len(batches)
            _post(
                config,
                {
                    "epoch": epoch + 1,
                    "epochs": learner.settings.epochs,
                    "step": done,
                    "num_steps": learner.num_steps,
                    "loss": total / words,
                    "captions_per_second": captions / (now - started),
                    "seconds_left": (learner.num_steps - done) * (now - started) / step,
                },
            )
    row = {"train_loss": _mean(total, words, learner)}
    return row | ({"reward": _mean(sum(rewards), len(rewards), learner)} if rewards else {})


def _post(config: dict[str, Any], event: dict[str, Any]) -> None:
    """Show an event to whoever started the job; nobody waits for it."""
    config["board"].post.remote(event)


def _dev_loss(learner: Learner, batches: CaptionBatches) -> float:
    """Mean cross-entropy per word of the dev captions, in nats."""
    total, words = 0.0, 0
    for batch in batches.epoch(0):
        loss, count = learner.evaluate(batch)
        total, words = total + loss, words + count
    return _mean(total, words, learner)


def _mean(total: float, count: int, learner: Learner) -> float:
    """Sums of all workers merged, then divided."""
    sums = torch.tensor([total, float(count)], dtype=torch.float64, device=next(learner.decoder.parameters()).device)
    if learner.world_size > 1:
        dist.all_reduce(sums)
    return float(sums[0] / sums[1])


def _dev_scores(
    decoder: Decoder,
    store: FeatureStore,
    dev: Split,
    vocabulary: Vocabulary,
    settings: TrainSettings,
    rank: int,
    world_size: int,
) -> dict[str, float]:
    """Caption this worker's share of the dev images, gather all, and score them."""
    decoder.eval()
    device = next(decoder.parameters()).device
    captioner = Captioner(None, decoder)
    mine = list(range(rank, len(dev.names), world_size))
    captions: dict[str, str] = {}
    for start in range(0, len(mine), _CAPTION_BATCH):
        images = mine[start : start + _CAPTION_BATCH]
        features = torch.from_numpy(store.array[dev.rows[images]]).float().to(device)
        for image, found in zip(images, captioner.caption_features(features, settings.search, images), strict=True):
            captions[dev.names[image]] = detokenize(vocabulary.decode(found[0].tokens))
    if world_size > 1:
        gathered: list[dict[str, str]] = [{} for _ in range(world_size)]
        dist.all_gather_object(gathered, captions)
        captions = {name: text for part in gathered for name, text in part.items()}
    scores = score_captions(captions, dict(zip(dev.names, dev.captions, strict=True)))
    return {
        "bleu_1": scores.bleu_1,
        "bleu_2": scores.bleu_2,
        "bleu_3": scores.bleu_3,
        "bleu_4": scores.bleu_4,
        "rouge_l": scores.rouge_l,
        "cider_d": scores.cider_d,
        "score": scores.cider_d,
    }


def _describe(row: dict[str, Any], settings: TrainSettings) -> str:
    return (
        f"epoch {row['epoch']}/{settings.training.epochs}  train loss {row['train_loss']:.3f}  "
        f"dev loss {row['dev_loss']:.3f}  BLEU-4 {100 * row['bleu_4']:.1f}  CIDEr-D {row['cider_d']:.3f}  "
        f"{row['seconds']:.0f} s"
    )


def _resume(learner: Learner, rank: int) -> tuple[int, list[dict[str, Any]]]:
    """Load the last checkpoint, if there is one: the epoch to go on with, and the epochs so far."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, []
    with checkpoint.as_directory() as directory:
        state = torch.load(Path(directory) / STATE, map_location="cpu", weights_only=True)
        history = json.loads((Path(directory) / "history.json").read_text())
    learner.load_state_dict(state["learner"])
    torch.set_rng_state(state["rng_of_ranks"][rank] if rank < len(state["rng_of_ranks"]) else torch.get_rng_state())
    return len(history), history


def _report(learner: Learner, row: dict[str, Any], history: list[dict[str, Any]], rank: int, world_size: int) -> None:
    """Hand the epoch to Ray Train: every worker its metrics, the first one the checkpoint."""
    import ray.train

    rng_of_ranks = [torch.get_rng_state()]
    if world_size > 1:
        rng_of_ranks = [torch.empty(0)] * world_size
        dist.all_gather_object(rng_of_ranks, torch.get_rng_state())
    if rank != 0:
        ray.train.report(row)
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save({"learner": learner.state_dict(), "rng_of_ranks": rng_of_ranks}, os.path.join(directory, STATE))
        (Path(directory) / "history.json").write_text(json.dumps(history))
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(directory))
