"""The loop of every training worker: steps, dev evaluation and checkpoint, epoch after epoch."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from captionlib.features.store import open_features
from captionlib.metrics import HEADLINE, LABELS, CiderD
from captionlib.storage.read import read_bytes
from captionlib.training.batches import CaptionBatches
from captionlib.training.early_stopping import has_stopped_early, is_over, plateau_factor
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.training.inputs import FeatureViews, Inputs, Photos, ahead
from captionlib.training.learner import Learner, NonFiniteLossError
from captionlib.training.self_critical import SelfCritic
from captionlib.vocabulary import PAD
from jobs.training.checkpoint import EpochSums, TrainingState, restore, save
from jobs.training.data import Prepared, Split, stated_encoder
from jobs.training.dev_evaluation import DevEvaluation
from jobs.training.failures import from_exception, position_of
from jobs.training.model import build_model
from jobs.training.teachers import build_teachers

_POST_EVERY_SECONDS = 2.0


def train_worker(config: dict[str, Any]) -> str | None:
    """Run one worker from the last checkpoint on; return a message if the data or the loss were wrong.

    Such a fault is returned rather than raised, because Ray Train would restart with the same data.
    """
    import ray
    import ray.train.torch

    prepared: Prepared = config["prepared"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL gathers objects through the current device
    # With a GPU, the CPUs decode photos in threads, which must not start PyTorch's own threads.
    torch.set_num_threads(1 if device.type == "cuda" else config["cpus_per_worker"])
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU for products that are not in bfloat16
    mailbox, rank = config["mailbox"], context.get_world_rank()
    ray.get(mailbox.at.remote(rank, position_of("start", 0, 0)))
    worker = None
    try:
        worker = Worker(
            prepared,
            rank=rank,
            world_size=context.get_world_size(),
            device=device,
            num_threads=config["cpus_per_worker"],
            mailbox=mailbox,
        )
        worker.run()
    except NonFiniteLossError as error:
        assert worker is not None
        return worker.blame(error)
    except Exception as error:
        position = position_of("start", 0, 0) if worker is None else worker.position
        ray.get(mailbox.raised.remote(rank, from_exception(error, position)))
        raise
    return None


@dataclass
class Worker:
    """One of the processes that share each step."""

    prepared: Prepared
    rank: int
    world_size: int
    device: torch.device
    num_threads: int
    mailbox: Any
    """Actor handle that receives events for the driver."""
    standing: TrainingState = field(default_factory=TrainingState)

    def __post_init__(self) -> None:
        prepared, self.settings = self.prepared, self.prepared.settings.training
        self.batches = self._batches(prepared.train, is_train=True)
        dev_batches = self._batches(prepared.dev, is_train=False)
        self.dev = DevEvaluation(prepared.dev, dev_batches, prepared.vocabulary, prepared.settings.search)
        torch.manual_seed(self.settings.seed)  # every worker starts from the same weights
        decoder = build_model(prepared).to(self.device)
        model: nn.Module = decoder
        if self.world_size > 1:
            model = nn.parallel.DistributedDataParallel(decoder)
        teachers = build_teachers(prepared.teachers, on_images=prepared.settings.from_images)
        self.learner = Learner(
            model,
            decoder,
            self.settings,
            steps_per_epoch=len(self.batches),
            world_size=self.world_size,
            autocast=torch.bfloat16 if self.device.type == "cuda" else None,
            critic=self._critic(),
            encoder=decoder.encoder if isinstance(decoder, EncoderDecoder) else None,
            teachers=None if teachers is None else teachers.to(self.device),
        )
        torch.manual_seed(self.settings.seed + 1 + self.rank)  # but dropout differs between workers
        self._last_save = time.monotonic()
        self.position = position_of("start", 0, 0)

    def run(self) -> None:
        """Run all remaining epochs."""
        self.standing = restore(self.learner, self.rank)
        history = self.standing.history
        self._enter("start")
        if history or self.standing.sums.steps:
            self._post({"text": self._where_we_are(), "history": history})
        while not is_over(history, self.settings):
            if self.settings.optimizer.schedule == "plateau":
                self.learner.plateau_factor = plateau_factor(history, self.settings.optimizer, self.settings.watch)
            self._train_epoch(len(history))
            row = self._row()
            history.append(row)
            self.standing.sums = EpochSums()
            save(self.learner, self.standing, row, self.rank, self._enter)
            self._last_save = time.monotonic()
            self._post({"text": self._describe(row), "history": history})
        if has_stopped_early(history, self.settings):
            watch = self.settings.watch
            self._post({"text": f"stopped early: {watch.patience} epochs without a better {watch.metric}"})

    def blame(self, error: NonFiniteLossError) -> str:
        """Describe a non-finite loss, with the images of the workers where it occurred."""
        gathered = [error.images]
        if self.world_size > 1:
            gathered = [[]] * self.world_size
            dist.all_gather_object(gathered, error.images)
        names = [self.prepared.train.names[i] for part in gathered for i in part]
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        images = f" Its images: {some}." if names else ""
        return f"{error}.{images} Lower --training.optimizer.learning-rate, or look at those images"

    # ---- parts ----

    def _inputs(self, split: Split, *, is_train: bool) -> Inputs:
        settings = self.prepared.settings
        if settings.from_images:
            return Photos(
                split.paths,
                self.prepared.encoder.preprocessing,
                augmented=is_train and settings.encoder.augment,
                read=read_bytes,
                num_threads=self.num_threads,
            )
        stated = stated_encoder(settings)
        store = open_features(settings.source, encoder=stated)
        also = [open_features(url, encoder=stated).array for url in settings.also_features if is_train]
        return FeatureViews([store.array, *also], store.positions(split.paths))

    def _batches(self, split: Split, *, is_train: bool) -> CaptionBatches:
        training, objects = self.settings, self.prepared.objects
        return CaptionBatches(
            self._inputs(split, is_train=is_train),
            [[self.prepared.vocabulary.encode(caption) for caption in image] for image in split.tokens],
            images_per_step=training.images_per_step,
            choice=training.captions if is_train else "all",
            caption_index=training.caption_index,
            captions_per_image=training.captions_per_image,
            weights=split.weights if is_train else None,
            objects=None if objects is None or not is_train else objects.labels,
            max_tokens=training.max_tokens,
            seed=training.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    def _critic(self) -> SelfCritic | None:
        """Build the reward of self-critical training; None if its weight is 0."""
        if not self.settings.self_critical.weight:
            return None
        return SelfCritic(
            CiderD.from_references(self.prepared.train.tokens, eos=True),
            self.prepared.vocabulary,
            num_samples=self.settings.self_critical.num_samples,
            max_tokens=self.prepared.settings.search.max_tokens,
            seed=self.settings.seed,
        )

    # ---- an epoch ----

    def _train_epoch(self, epoch: int) -> None:
        """Run the remaining steps of one epoch, and add to `standing.sums`."""
        sums = self.standing.sums
        started = time.monotonic() - sums.seconds
        batches = self.batches.epoch(epoch, first_step=sums.steps)
        here, began, last_post = 0, time.monotonic(), time.monotonic()
        with contextlib.closing(ahead(batches)) as upcoming:
            self._enter("data", wait=False)
            for batch in upcoming:
                self._enter("step", wait=False)
                loss, words = self.learner.step(batch)
                captions = int((batch.tokens[..., 0] != PAD).sum())
                here += captions
                sums.steps += 1
                sums.loss, sums.words, sums.captions = sums.loss + loss, sums.words + words, sums.captions + captions
                if self.learner.reward is not None:
                    sums.reward, sums.rewards = sums.reward + self.learner.reward, sums.rewards + 1
                now = time.monotonic()
                sums.seconds = now - started
                if now - last_post > _POST_EVERY_SECONDS:
                    last_post = now
                    self._post_step(epoch, here * self.world_size / (now - began))
                if sums.steps < len(self.batches) and self._save_is_due():
                    save(self.learner, self.standing, None, self.rank, self._enter)
                    self._last_save = time.monotonic()
                self.position = position_of("data", self.learner.step_number, epoch + 1)

    def _row(self) -> dict[str, Any]:
        """Return the metrics of the epoch whose steps are finished."""
        epoch, started = len(self.standing.history), time.monotonic()
        sums = self.standing.sums.merged(self.world_size)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.learner.step_number,
            "learning_rate": self.learner.learning_rate_at(epoch * len(self.batches)),
            "teacher_forcing": self.learner.teacher_forcing_at(epoch),
            "train_loss": sums.loss / sums.words,
        }
        if sums.rewards:
            row["reward"] = sums.reward / sums.rewards
        self._enter("dev evaluation")
        row |= self.dev.evaluate(self.learner)
        row["captions_per_second"] = sums.captions / sums.seconds
        row["train_seconds"] = sums.seconds
        row["seconds"] = sums.seconds + time.monotonic() - started
        return row

    def _save_is_due(self) -> bool:
        """Whether to write a checkpoint now; the first worker's clock decides for all workers."""
        minutes = self.prepared.settings.checkpoint_minutes
        if not minutes:
            return False
        due = time.monotonic() - self._last_save >= 60 * minutes
        if self.world_size > 1:
            flag = torch.tensor([int(due)], device=self.device)
            dist.broadcast(flag, 0)
            due = bool(flag.item())
        return due

    def _enter(self, phase: str, *, wait: bool = True) -> None:
        """Record that a phase begins. Steps are frequent, so the message is sent without waiting."""
        import ray

        # At the end of an epoch, the checkpoint is written after the epoch was added to the history.
        is_over = phase in ("checkpoint", "report") and self.learner.step_number == len(self.standing.history) * len(
            self.batches
        )
        epoch = len(self.standing.history) + (0 if is_over else 1)
        self.position = position_of(phase, self.learner.step_number, epoch)
        told = self.mailbox.at.remote(self.rank, self.position)
        if wait:
            ray.get(told)

    # ---- what a person sees ----

    def _post(self, event: dict[str, Any]) -> None:
        """Send an event to the driver without waiting."""
        if self.rank == 0:
            self.mailbox.post.remote(event)

    def _post_step(self, epoch: int, captions_per_second: float) -> None:
        sums, learner = self.standing.sums, self.learner
        self._post(
            {
                "epoch": epoch + 1,
                "epochs": self.settings.epochs,
                "step": learner.step_number,
                "num_steps": learner.num_steps,
                "loss": sums.loss / sums.words,
                "captions_per_second": captions_per_second,
                "seconds_left": (learner.num_steps - learner.step_number) * sums.seconds / sums.steps,
            }
        )

    def _where_we_are(self) -> str:
        epochs, steps = len(self.standing.history), self.standing.sums.steps
        text = f"going on after epoch {epochs} of {self.settings.epochs}"
        return text + (f" and {steps} of {len(self.batches)} steps of the next" if steps else "")

    def _describe(self, row: dict[str, Any]) -> str:
        scores = "  ".join(f"{LABELS[name].title} {LABELS[name].short(row[name])}" for name in HEADLINE)
        return (
            f"epoch {row['epoch']}/{self.settings.epochs}  train loss {row['train_loss']:.3f}  "
            f"dev loss {row['dev_loss']:.3f}  {scores}  {row['seconds']:.0f} s"
        )
