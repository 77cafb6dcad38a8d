"""Settings of training that are independent of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from captionlib.errors import UserError
from captionlib.ranges import ABOVE_ZERO, BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, at_least, check_ranges


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer and the schedule of its learning rate."""

    kind: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1.2e-3
    """Peak learning rate."""
    encoder_factor: float = 0.1
    """Multiplier of the learning rate for a trained encoder."""
    weight_decay: float = 0.0
    momentum: float = 0.9
    """Momentum of SGD and RMSProp."""
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = "cosine"
    """How the learning rate falls after warm-up: over the whole run, or depending on dev scores (`plateau`)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    step_epochs: int = 3
    """`step`: number of epochs between reductions."""
    step_factor: float = 0.5
    """`step` and `plateau`: factor of each reduction."""
    plateau_epochs: int = 2
    """`plateau`: number of epochs without a new best score (see `watch`) that cause a reduction."""
    clip_norm: float = 5.0
    """Gradients with a larger global norm are scaled down to it; 0 disables clipping."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "optimizer.",
            learning_rate=POSITIVE,
            encoder_factor=POSITIVE,
            clip_norm=NOT_NEGATIVE,
            step_epochs=at_least(1),
            plateau_epochs=at_least(1),
            step_factor=ABOVE_ZERO,
        )


@dataclass(frozen=True, kw_only=True)
class TeacherForcingSettings:
    """How often the input of a step is the given word (scheduled sampling, Bengio et al. 2015, section 2.4)."""

    schedule: Literal["constant", "linear", "exponential", "inverse_sigmoid"] = "constant"
    start: float = 1.0
    """Probability of given words in the first epoch (`constant`: in all epochs)."""
    end: float = 0.75
    """`linear`: probability in the last epoch; the lower bound of the other schedules."""
    rate: float = 0.95
    """`exponential`: the factor k per epoch; `inverse_sigmoid`: k in k / (k + exp(epoch / k))."""

    def __post_init__(self) -> None:
        check_ranges(self, "teacher_forcing.", start=SHARE, end=SHARE)


@dataclass(frozen=True, kw_only=True)
class SelfCriticalSettings:
    """Training on the score of the decoder's own captions (Rennie et al. 2017). It needs a decoder that is already
    trained: start from a checkpoint."""

    weight: float = 0.0
    """Share of the objective; the rest is cross-entropy, which keeps sentences complete. 0 disables it."""
    num_samples: int = 5
    """Number of captions drawn per image and step."""

    def __post_init__(self) -> None:
        check_ranges(self, "self_critical.", weight=SHARE, num_samples=at_least(2))


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """The dev score that early stopping and the plateau schedule depend on."""

    metric: Literal["cider_d", "dev_loss"] = "cider_d"
    patience: int = 0
    """Stop early after this number of consecutive epochs without a new best score; 0 trains all epochs."""
    min_change: float = 0.0
    """A new best score must be better by more than this."""

    def __post_init__(self) -> None:
        check_ranges(self, "watch.", patience=NOT_NEGATIVE, min_change=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class CaptionFilter:
    """Which training captions are omitted. All dev captions are used."""

    min_words: int = 1
    """Omit captions with fewer words."""
    max_words: int | None = None
    """Omit captions with more words, instead of cutting them to `max_tokens`."""
    min_known: float = 0.0
    """Omit captions if a smaller share of their words is in the vocabulary."""

    def __post_init__(self) -> None:
        check_ranges(self, "filter.", min_words=at_least(1), min_known=SHARE)
        if self.max_words is not None and self.max_words < self.min_words:
            raise UserError(f"filter.max_words {self.max_words} is less than min_words {self.min_words}")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of one training run."""

    epochs: int = 8
    images_per_step: int = 25
    """Number of images of one optimizer step over all workers, so that a run is the same on 1 worker and on 8."""
    captions: Literal["all", "random", "index", "longest", "shortest"] = "all"
    """Which captions of an image a step learns. `all` projects the features once for all of them."""
    caption_index: int = 0
    """`index`: index from 0 among the captions that pass the filter; the last one if there are fewer."""
    captions_per_image: int = 1
    """`random`: number of captions per image and step, drawn anew in every epoch; all if there are fewer."""
    accumulation: int = 1
    """Number of parts that a worker processes its share of a step in, to save memory; the result is the same."""
    label_smoothing: float = 0.1
    teacher_share: float = 0.5
    """Share of the objective that is cross-entropy with the teachers' probabilities, if there are teachers."""
    objects_weight: float = 0.0
    """Weight of the auxiliary object loss (see `--data.objects-file`): per image, the cross-entropy summed over the
categories. It trains the encoder and is not exported. 0 disables it."""
    doubly_stochastic: float = 0.0
    """Weight of the attention penalty (Xu et al. 2015, eq. 14), per caption."""
    max_tokens: int = 30
    """Longer captions are cut to this number of words."""
    min_count: int = 3
    """Words that occur less often in the training captions become <unk>."""
    vocabulary_size: int | None = None
    """Maximum vocabulary size, including the four special tokens; the most frequent words are kept."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights, which is evaluated and exported; 0 uses the
weights themselves.
"""
    seed: int = 0
    filter: CaptionFilter = field(default_factory=CaptionFilter)
    watch: WatchSettings = field(default_factory=WatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    teacher_forcing: TeacherForcingSettings = field(default_factory=TeacherForcingSettings)
    self_critical: SelfCriticalSettings = field(default_factory=SelfCriticalSettings)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "",
            epochs=at_least(1),
            images_per_step=at_least(1),
            captions_per_image=at_least(1),
            accumulation=at_least(1),
            max_tokens=at_least(1),
            min_count=at_least(1),
            caption_index=NOT_NEGATIVE,
            objects_weight=NOT_NEGATIVE,
            label_smoothing=BELOW_ONE,
            teacher_share=SHARE,
            ema_decay=BELOW_ONE,
        )
        if self.captions_per_image > 1 and self.captions != "random":
            raise UserError(
                f"captions_per_image {self.captions_per_image} is for captions that are drawn: set captions to random"
            )
        if self.vocabulary_size is not None and self.vocabulary_size < 5:
            raise UserError(f"vocabulary_size must be at least 5 (4 words are special), got {self.vocabulary_size}")
        forcing = self.teacher_forcing
        if self.self_critical.weight and (forcing.schedule != "constant" or forcing.start < 1):
            raise UserError("self-critical training scores whole captions: it needs constant teacher forcing of 1")


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """Settings of the training of a word detector, see `captionlib.training.detector`."""

    epochs: int = 10
    """Number of passes over the images."""
    images_per_step: int = 64
    learning_rate: float = 1e-3
    """Learning rate of Adam in the first step; it falls to 0 on a cosine."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, "training.", epochs=at_least(1), images_per_step=at_least(1), learning_rate=POSITIVE, seed=at_least(0)
        )
