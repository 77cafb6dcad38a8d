"""Settings of training that belong to learning, not to the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Which optimizer, and how its learning rate moves."""

    kind: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: float = 1.2e-3
    """Peak learning rate."""
    encoder_factor: float = 0.1
    """An encoder that is trained, too, has the learning rate times this."""
    weight_decay: float = 0.0
    momentum: float = 0.9
    """SGD and RMSProp."""
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = "cosine"
    """How the learning rate falls after warm-up: over the whole run, or (`plateau`) when dev scores say so."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    step_epochs: int = 3
    """`step`: epochs between falls."""
    step_factor: float = 0.5
    """`step` and `plateau`: what each fall multiplies by."""
    plateau_epochs: int = 2
    """`plateau`: epochs in a row without a new best (see `watch`) that lead to a fall."""
    clip_norm: float = 5.0
    """Gradients of a larger global norm are scaled down to it; 0 switches it off."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        if self.encoder_factor <= 0:
            raise ValueError(f"optimizer.encoder_factor must be positive, got {self.encoder_factor}")
        if self.clip_norm < 0:
            raise ValueError(f"optimizer.clip_norm must not be negative, got {self.clip_norm}")
        for name in ("step_epochs", "plateau_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.step_factor <= 1:
            raise ValueError(f"optimizer.step_factor must be in (0, 1], got {self.step_factor}")


@dataclass(frozen=True, kw_only=True)
class TeacherForcingSettings:
    """How often a step's input is the given word (scheduled sampling, Bengio et al. 2015, section 2.4)."""

    schedule: Literal["constant", "linear", "exponential", "inverse_sigmoid"] = "constant"
    start: float = 1.0
    """Share of given words in the first epoch (`constant`: in all)."""
    end: float = 0.75
    """`linear`: share in the last epoch; the others never fall below it."""
    rate: float = 0.95
    """`exponential`: the factor k per epoch; `inverse_sigmoid`: k in k / (k + exp(epoch / k))."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"teacher_forcing.{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SelfCriticalSettings:
    """Learning from the score of the decoder's own captions (Rennie et al. 2017). For a decoder that can
    caption already: start from a checkpoint."""

    weight: float = 0.0
    """Share of the objective; the rest is cross-entropy, which keeps the sentences whole. 0 switches it off."""
    num_samples: int = 5
    """Captions drawn per image and step."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"self_critical.weight must be in [0, 1], got {self.weight}")
        if self.num_samples < 2:
            raise ValueError(f"self_critical.num_samples must be at least 2, got {self.num_samples}")


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """The dev score that early stopping and the plateau schedule go by."""

    metric: Literal["cider_d", "dev_loss"] = "cider_d"
    patience: int = 0
    """Stop early after so many epochs in a row without a new best; 0 trains all epochs."""
    min_change: float = 0.0
    """A new best is better by more than this."""

    def __post_init__(self) -> None:
        for name in ("patience", "min_change"):
            if getattr(self, name) < 0:
                raise ValueError(f"watch.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class CaptionFilter:
    """Which training captions are left out. Dev captions all count."""

    min_words: int = 1
    """Shorter captions are left out."""
    max_words: int | None = None
    """Longer captions are left out, where `max_tokens` would cut them."""
    min_known: float = 0.0
    """Captions of whose words a smaller share is in the vocabulary are left out."""

    def __post_init__(self) -> None:
        if self.min_words < 1:
            raise ValueError(f"filter.min_words must be at least 1, got {self.min_words}")
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(f"filter.max_words {self.max_words} is less than min_words {self.min_words}")
        if not 0 <= self.min_known <= 1:
            raise ValueError(f"filter.min_known must be in [0, 1], got {self.min_known}")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One training run."""

    epochs: int = 8
    images_per_step: int = 25
    """Images of one optimizer step over all workers together: a run means the same on 1 worker and on 8."""
    captions: Literal["all", "random", "index", "longest", "shortest"] = "all"
    """Which of an image's captions a step learns. `all` projects the features once for all of them."""
    caption_index: int = 0
    """`index`: which one, counted from 0 among those that the filter leaves; of fewer, the last."""
    captions_per_image: int = 1
    """`random`: how many of an image's captions a step learns, drawn anew in every epoch; of fewer, all."""
    accumulation: int = 1
    """Parts into which a worker cuts its share of a step, to need less memory; the result is the same."""
    label_smoothing: float = 0.1
    teacher_share: float = 0.5
    """Share of the objective that is cross-entropy with the teachers' probabilities, where there are teachers."""
    objects_weight: float = 0.0
    """Weight of learning which objects are in the image (see `--data.objects-file`): per image, the cross-entropy
    summed over the categories. It trains the encoder; nothing of it is exported. 0 switches it off."""
    doubly_stochastic: float = 0.0
    """Weight of the attention penalty (Xu et al. 2015, eq. 14), per caption."""
    max_tokens: int = 30
    """Longer captions are cut to this many words."""
    min_count: int = 3
    """Words that occur less often in the training captions become <unk>."""
    vocabulary_size: int | None = None
    """Most words that are known, the special ones included: the most frequent."""
    ema_decay: float = 0.0
    """Decay per step of the averaged weights that are evaluated and exported; 0 uses the weights themselves."""
    seed: int = 0
    filter: CaptionFilter = field(default_factory=CaptionFilter)
    watch: WatchSettings = field(default_factory=WatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    teacher_forcing: TeacherForcingSettings = field(default_factory=TeacherForcingSettings)
    self_critical: SelfCriticalSettings = field(default_factory=SelfCriticalSettings)

    def __post_init__(self) -> None:
        for name in ("epochs", "images_per_step", "captions_per_image", "accumulation", "max_tokens", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.caption_index < 0:
            raise ValueError(f"caption_index must not be negative, got {self.caption_index}")
        if self.captions_per_image > 1 and self.captions != "random":
            raise ValueError(
                f"captions_per_image {self.captions_per_image} is for captions that are drawn: set captions to random"
            )
        if self.objects_weight < 0:
            raise ValueError(f"objects_weight must not be negative, got {self.objects_weight}")
        if self.vocabulary_size is not None and self.vocabulary_size < 5:
            raise ValueError(f"vocabulary_size must be at least 5 (4 words are special), got {self.vocabulary_size}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share must be in [0, 1], got {self.teacher_share}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        forcing = self.teacher_forcing
        if self.self_critical.weight and (forcing.schedule != "constant" or forcing.start < 1):
            raise ValueError("self-critical training scores whole captions: it needs constant teacher forcing of 1")
