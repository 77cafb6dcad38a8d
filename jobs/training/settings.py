"""The settings of the training job: its command line, and what is stored with a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from captionlib.checkpoints import read_config, resolve_checkpoint
from captionlib.config import DecoderConfig, SearchConfig
from captionlib.errors import UserError
from captionlib.ranges import NOT_NEGATIVE, at_least, check_ranges
from captionlib.storage.folder import Folder
from captionlib.training.settings import TrainingSettings
from jobs.cli.arguments import peek_setting
from jobs.cli.encoder import EncoderSettings


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The captions, and the images that they belong to."""

    kind: Literal["flickr8k", "flickr30k", "coco", "karpathy", "csv", "parquet"] = "flickr8k"
    """Format of the captions."""
    root: str | None = None
    """The dataset's folder, such as the one that contains Flickr8k.token.txt."""
    captions_file: str | None = None
    """The captions file, if it is not in its usual place below the root."""
    objects_file: str | None = None
    """A JSON object that maps the file names of training images to lists of the objects in them. The objects of other
images are unknown. For --training.objects-weight."""
    train_split: str = "train"
    dev_split: str = "dev"


@dataclass(frozen=True, kw_only=True)
class TrainEncoderSettings(EncoderSettings):
    """The encoder of `--from-images` (with `--start-from`, that of the checkpoint), or the one that made ready-made
    features, so that the exported checkpoint can caption photos. Features written by `jobs.extract_features` state it
    themselves."""

    train_from: str | None = None
    """Train the encoder from this stage on, such as blocks.12 or layer4; default: the encoder is not trained."""
    augment: bool = True
    """Show random crops, mirrored with probability 0.5."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a caption decoder on features, data-parallel on Ray Train."""

    source: Annotated[str, tyro.conf.Positional]
    """Features written by jobs.extract_features, of both the train and the dev images; with --from-images, the folder
or URL of the images."""
    run: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run: checkpoints, metrics, and the best checkpoint, ready for jobs.caption. A run with the
same settings is resumed."""
    also_features: tuple[str, ...] = ()
    """Further features of the same images, such as mirrored ones; each step draws one view per image."""
    from_images: bool = False
    """Run the encoder in every step, on original or augmented images; it can be trained as well."""
    encoder: TrainEncoderSettings = field(default_factory=TrainEncoderSettings)
    start_from: str | None = None
    """Checkpoint whose decoder and vocabulary the run starts from, such as `best` of another run, or `default`. The
defaults of --decoder and --search are its own."""
    start_words: Literal["same", "extended", "anew"] = "same"
    """Vocabulary with `--start-from`. `same`: the checkpoint's. `extended`: the checkpoint's and the words that are
    frequent in the captions. `anew`: only the words that are frequent in the captions. Frequent means
    --training.min-count and --training.vocabulary-size, or being part of a name in --data.objects-file. What was learnt
    about a word is kept."""
    teachers: tuple[str, ...] = ()
    """Checkpoints with the same vocabulary for knowledge distillation: the decoder also learns their averaged
probabilities (see --training.teacher-share). On features, decoders trained on the same features."""
    data: DataSettings = field(default_factory=DataSettings)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    """How dev images are captioned after each epoch; also the default of the exported checkpoint."""
    num_workers: int = 1
    """Number of processes that share each step."""
    min_workers: int | None = None
    """Continue with as few as this many workers while the cluster has no room for more; default: wait for all."""
    cpus_per_worker: int | None = None
    """Default: the cluster's CPUs divided by the number of workers."""
    use_gpu: bool = False
    """Give each worker a GPU."""
    address: str | None = None
    """Address of a running Ray cluster (`auto`, or host:port); default: start Ray on this machine."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line overrides it."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints within an epoch; 0: only at the end of each epoch."""
    max_failures: int = 3
    """Number of worker failures after which the run stops; before, it restarts from its last checkpoint."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "--",
            num_workers=at_least(1),
            cpus_per_worker=at_least(1),
            checkpoint_minutes=NOT_NEGATIVE,
            max_failures=NOT_NEGATIVE,
        )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise UserError(
                f"--min-workers must be between 1 and --num-workers {self.num_workers}, got {self.min_workers}"
            )
        if self.from_images and self.also_features:
            raise UserError("--also-features is for training on features: with --from-images, leave it out")
        if not self.from_images and (self.encoder.train_from is not None or not self.encoder.augment):
            raise UserError(
                "--encoder.train-from and --encoder.no-augment are for --from-images: stored features cannot be changed"
            )
        if (self.data.objects_file is None) != (self.training.objects_weight == 0):
            raise UserError("--data.objects-file and --training.objects-weight go together: give both or neither")
        if self.data.objects_file is not None and self.encoder.train_from is None:
            raise UserError("objects train the encoder: --data.objects-file needs --encoder.train-from")
        if self.start_from is not None and self.encoder.checkpoint is not None:
            raise UserError("--start-from brings its own encoder: leave out --encoder.checkpoint")
        if self.start_words != "same" and self.start_from is None:
            raise UserError(f"--start-words {self.start_words} is for --start-from: without it, all words are new")
        if self.teachers and self.training.self_critical.weight:
            raise UserError("--teachers and --training.self-critical.weight cannot be combined: remove one of them")
        unnamed = replace(self.encoder, checkpoint=None)
        if not self.from_images and self.encoder.name is None and unnamed != TrainEncoderSettings():
            raise UserError("name the encoder that made the features with --encoder.name")

    @property
    def encoder_checkpoint(self) -> str | None:
        """The checkpoint whose encoder is used, whether or not its decoder is trained further."""
        return self.start_from or self.encoder.checkpoint

    def resolved(self) -> TrainSettings:
        """Return a copy with absolute paths, because workers have another working directory."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else Folder.of(path).url

        def checkpoint(source: str | None) -> str | None:
            return source if source == "default" else absolute(source)

        data = replace(
            self.data,
            root=absolute(self.data.root),
            captions_file=absolute(self.data.captions_file),
            objects_file=absolute(self.data.objects_file),
        )
        return replace(
            self,
            source=Folder.of(self.source).url,
            run=Folder.of(self.run).url,
            also_features=tuple(Folder.of(url).url for url in self.also_features),
            start_from=checkpoint(self.start_from),
            teachers=tuple(source if source == "default" else Folder.of(source).url for source in self.teachers),
            encoder=replace(self.encoder, checkpoint=checkpoint(self.encoder.checkpoint)),
            data=data,
        )


def defaults_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the defaults of a command line: with `--start-from`, decoder and search of that checkpoint.

    Its word detector is left out, because a trained decoder has none until `jobs.train_detector` makes one.
    """
    try:
        source = peek_setting(arguments, "start-from")
        if source is None:
            return {}
        start = read_config(resolve_checkpoint(source))
    except (OSError, UserError):
        return {}  # the job says what is wrong with the settings file or the checkpoint
    return {"decoder": start.model.decoder, "search": replace(start.search, detector_weight=0.0)}
