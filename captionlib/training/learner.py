"""The learner: updates the weights of a decoder from batches, and saves the state that exact resumption needs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.decoders import Decoder
from captionlib.devices import to_device
from captionlib.errors import CaptionlibError
from captionlib.training.batches import Batch, pad_captions, side_by_side
from captionlib.training.distillation import Teachers
from captionlib.training.inputs import shown_on
from captionlib.training.losses import LossSums, caption_loss, doubly_stochastic_penalty
from captionlib.training.objects import objects_loss
from captionlib.training.optimizers import build_optimizer, learning_rate_factor, teacher_forcing_ratio
from captionlib.training.self_critical import SelfCritic, self_critical_loss
from captionlib.training.settings import TrainingSettings


class NonFiniteLossError(CaptionlibError):
    """The loss became infinite or NaN. The weights are those before that step.

    All workers of a step raise it, because they share its gradients.

    Args:
        message: the value and the step.
        images: positions of this worker's images; empty if only the loss of another worker was not finite.
    """

    def __init__(self, message: str, images: Sequence[int]) -> None:
        super().__init__(message)
        self.images = list(images)


class Learner:
    """A decoder with its optimizer and averaged weights.

    Args:
        model: the decoder as called in training, `model(features, tokens, teacher_forcing)`; it may be wrapped for
            data-parallel training.
        decoder: the same decoder without the wrapper.
        settings: training settings.
        steps_per_epoch: number of optimizer steps of an epoch.
        world_size: number of workers. Wrapped models average gradients over them, while sums are needed.
        autocast: dtype of the forward pass; None computes in float32.
        critic: draws and rewards captions, if `settings.self_critical` has a weight.
        encoder: pretrained part of the decoder, which has a lower learning rate.
        teachers: teachers for distillation, on the device of the decoder; not together with a critic.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        settings: TrainingSettings,
        *,
        steps_per_epoch: int,
        world_size: int = 1,
        autocast: torch.dtype | None = None,
        critic: SelfCritic | None = None,
        encoder: nn.Module | None = None,
        teachers: Teachers | None = None,
    ) -> None:
        if critic is not None and teachers is not None:
            raise ValueError("teachers know nothing of captions that are drawn: no self-critical training with them")
        self.model, self.decoder, self.settings = model, decoder, settings
        self.steps_per_epoch, self.world_size, self.autocast = steps_per_epoch, world_size, autocast
        self.critic, self.teachers = critic, teachers
        self.num_steps = steps_per_epoch * settings.epochs
        slow = () if encoder is None else encoder.parameters()
        self.optimizer = build_optimizer(decoder.parameters(), settings.optimizer, slow)
        self.step_number = 0
        self.plateau_factor = 1.0
        """Current factor of the plateau schedule; 1 with any other schedule."""
        self.reward: float | None = None
        """Mean CIDEr-D of the captions that were drawn in the last step, in self-critical training."""
        self.average: dict[str, Tensor] | None = None
        if settings.ema_decay:
            self.average = {name: value.detach().clone() for name, value in decoder.state_dict().items()}

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step of the run (0-based)."""
        factor = learning_rate_factor(
            step, steps_per_epoch=self.steps_per_epoch, num_steps=self.num_steps, settings=self.settings.optimizer
        )
        return self.settings.optimizer.learning_rate * factor * self.plateau_factor

    def teacher_forcing_at(self, epoch: int) -> float:
        """Return the probability of given words in an epoch of the run (0-based)."""
        return teacher_forcing_ratio(epoch, epochs=self.settings.epochs, settings=self.settings.teacher_forcing)

    def step(self, batch: Batch) -> tuple[float, int]:
        """Learn one batch; return this worker's sum of cross-entropy (nats) and number of words of the given captions.

        Raises:
            NonFiniteLossError: before the weights are changed.
        """
        self.model.train()
        learning_rate = self.learning_rate_at(self.step_number)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        cross_entropy = torch.zeros((), device=_device(self.decoder))
        num_words = 0
        parts = self._parts(batch)
        for number, part in enumerate(parts):
            with self._gradient_sync(last=number == len(parts) - 1):
                objective, sums = self._loss(part)
                # DistributedDataParallel averages gradients over the workers, but the step needs their sum.
                (objective * self.world_size).backward()
            cross_entropy += sums.cross_entropy
            num_words += sums.num_words
        trained = [p for p in self.decoder.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        # This is the only place in a step where the host waits for the device.
        loss, norm_value = torch.stack([cross_entropy.double(), norm.double()]).tolist()
        self._check_finite(loss, norm_value, batch)
        if self.settings.optimizer.clip_norm:
            nn.utils.clip_grads_with_norm_(trained, self.settings.optimizer.clip_norm, norm)
        self.optimizer.step()
        self.step_number += 1
        self._update_average()
        return loss, num_words

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Return the sum of cross-entropy (nats) and the number of words under teacher forcing, without learning."""
        self.decoder.eval()
        device = _device(self.decoder)
        output = self.decoder(shown_on(batch.features, device), batch.tokens)
        sums = caption_loss(output.logits, output.targets)
        return float(sums.cross_entropy), sums.num_words

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Context in which the decoder has its averaged weights, if there are any."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in self.decoder.state_dict().items()}
        self.decoder.load_state_dict(self.average)
        try:
            yield
        finally:
            self.decoder.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs, including random generators."""
        return {
            "decoder": self.decoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step_number": self.step_number,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.decoder.load_state_dict(state["decoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = _device(self.decoder)  # checkpoints are loaded on the host
        average = state["average"]
        self.average = None if average is None else {name: to_device(value, device) for name, value in average.items()}
        self.step_number = state["step_number"]
        torch.set_rng_state(state["rng"].cpu())

    def _loss(self, batch: Batch) -> tuple[Tensor, LossSums]:
        """Compute one part's share of the objective of the step, and the sums over its given captions."""
        features, tokens, images = batch.features, batch.tokens, batch.images
        num_given = tokens.shape[1]
        samples = None
        if self.critic is not None:
            samples = self.critic.samples(self.decoder, features, images.tolist(), self.step_number)
            # Reference and sampled captions go through the decoder together, so that features are projected once.
            tokens = side_by_side(tokens, pad_captions(samples.captions).to(tokens.device))
        enabled = self.autocast is not None
        with torch.autocast(features.device.type, dtype=self.autocast or torch.bfloat16, enabled=enabled):
            output = self.model(features, tokens, self.teacher_forcing_at(self.step_number // self.steps_per_epoch))
        logits, targets = output.logits, output.targets
        if samples is not None:
            given = output.captions % tokens.shape[1] < num_given  # (M,)
            logits, targets = logits[given], targets[given]
        teacher_probs = None
        if self.teachers is not None:
            teacher_probs = self.teachers.probabilities(features, tokens, output.captions)
        weights = None
        if batch.weights is not None:
            num_drawn = tokens.shape[1] - num_given
            words = output.captions if samples is None else output.captions[given]
            weights = F.pad(batch.weights, (0, num_drawn)).flatten()[words]  # (M,)
        sums = caption_loss(
            logits, targets, self.settings.label_smoothing, teacher_probs, self.settings.teacher_share, weights
        )
        objective = sums.objective / batch.num_words
        if samples is not None:
            self.reward = samples.mean_reward
            share = self.settings.self_critical.weight
            drawn = self_critical_loss(output, ~given, samples, num_given) * len(images) / batch.num_images
            objective = (1 - share) * objective + share * drawn
        if self.settings.doubly_stochastic:
            if output.attention is None:
                raise ValueError("doubly_stochastic needs a decoder with attention: set it to 0")
            penalty = doubly_stochastic_penalty(output.attention[:, :num_given]) / batch.num_captions
            objective = objective + self.settings.doubly_stochastic * penalty
        if output.objects is not None and batch.objects is not None:
            mean = objects_loss(output.objects, batch.objects) / max(batch.num_labelled, 1)
            objective = objective + self.settings.objects_weight * mean
        return objective, sums

    def _parts(self, batch: Batch) -> list[Batch]:
        """Yield the batch on the device, cut into parts that are processed one after the other."""
        device = _device(self.decoder)
        tensors: dict[str, Any] = {
            "features": shown_on(batch.features, device),
            "tokens": batch.tokens,
        }  # see `LongestFirst`
        labels = {"weights": batch.weights, "objects": batch.objects}
        tensors |= {name: to_device(tensor, device) for name, tensor in labels.items() if tensor is not None}
        num_parts = min(self.settings.accumulation, len(batch.features))
        cut: dict[str, Any] = {name: tensor.tensor_split(num_parts) for name, tensor in tensors.items()}
        images = np.array_split(batch.images, num_parts)
        return [
            dataclasses.replace(batch, images=images[i], **{name: parts[i] for name, parts in cut.items()})
            for i in range(num_parts)
        ]

    def _gradient_sync(self, *, last: bool) -> Any:
        """Synchronise gradients between workers once per step, with the last part."""
        no_sync: Callable[[], Any] | None = getattr(self.model, "no_sync", None)
        return contextlib.nullcontext() if last or no_sync is None else no_sync()

    def _check_finite(self, loss: float, norm: float, batch: Batch) -> None:
        for what, value in (("loss", loss), ("gradients' norm", norm)):
            if not math.isfinite(value):
                # Gradients are summed over workers, so the images of another worker may be the cause.
                ours = what == "loss" or self.world_size == 1
                raise NonFiniteLossError(
                    f"the {what} is {value} at step {self.step_number}, and the weights are as before it",
                    batch.images.tolist() if ours else [],
                )

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None:
            return
        # At first the average follows faster, so that it forgets the random weights (as in TensorFlow's EMA).
        decay = min(self.settings.ema_decay, (1 + self.step_number) / (10 + self.step_number))
        state = self.decoder.state_dict()
        moving = [name for name, value in state.items() if value.is_floating_point()]
        # One call for all tensors, instead of hundreds of kernels on a GPU.
        torch._foreach_lerp_([self.average[name] for name in moving], [state[name] for name in moving], 1 - decay)
        for name in state.keys() - set(moving):
            self.average[name].copy_(state[name])


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
