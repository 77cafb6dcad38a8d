"""Settings of the training job: what its command line takes, and what is stored with the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from captionlib.config import DecoderConfig, SearchConfig
from captionlib.training.settings import TrainingSettings
from jobs.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Captions, and which images they belong to."""

    kind: Literal["flickr8k", "flickr30k", "coco", "karpathy", "csv", "parquet"] = "flickr8k"
    """Form of the captions."""
    root: str | None = None
    """The dataset's folder, such as the one with Flickr8k.token.txt."""
    captions_file: str | None = None
    """The captions, where they are not in their usual place below the root."""
    objects_file: str | None = None
    """A JSON object: a training image's file name to the list of objects in it. Images that it does not name may show
    anything. For --training.objects-weight."""
    train_split: str = "train"
    dev_split: str = "dev"


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The encoder of `--from-images` (with `--start-from`, it is that checkpoint's), or the one that made ready-made
    features, so that the run's best can caption photos. What `jobs.extract_features` wrote says so itself."""

    kind: Literal["efficientnet_lite", "torchvision", "timm"] = "efficientnet_lite"
    """The library."""
    name: str | None = None
    """The network, by its name in its library; default: efficientnet_lite0, or the checkpoint's."""
    features: Literal["grid", "pooled", "logits"] = "grid"
    """Which of its outputs."""
    checkpoint: str | None = None
    """The checkpoint whose encoder it is, as for `--model` of jobs.extract_features, when the decoder is to be a new
    one; default: the library's weights."""
    size: int | None = None
    """Side of the square that images are scaled to, in pixels; default: what the weights were trained with. A larger
    one shows smaller things, and the encoder's time grows with its square."""
    train_from: str | None = None
    """The stage from which on it is trained, such as blocks.12 or layer4; default: all of it stays as it is."""
    augment: bool = True
    """Show random crops, mirrored or not."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a caption decoder on features, data-parallel on Ray Train."""

    source: Annotated[str, tyro.conf.Positional]
    """What jobs.extract_features wrote, of both the train and the dev images; with --from-images, the folder or
    URL of the images themselves."""
    run: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run: checkpoints, metrics, and the best one ready for jobs.caption. A folder that
    already holds a run of the same settings is gone on with."""
    also_features: tuple[str, ...] = ()
    """Further features of the same images, such as mirrored ones; each step takes one or the other."""
    from_images: bool = False
    """Run the encoder in every step, on images as they are or augmented; it may be trained, too."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    start_from: str | None = None
    """A checkpoint whose decoder and words to start from, such as another run's `best`, or `default`."""
    teachers: tuple[str, ...] = ()
    """Checkpoints of the same vocabulary whose averaged probabilities the decoder learns, too (see
    --training.teacher-share); on features, decoders trained on these."""
    data: DataSettings = field(default_factory=DataSettings)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    """How dev images are captioned after each epoch, and the default of the exported checkpoint."""
    num_workers: int = 1
    """Processes that share each step."""
    min_workers: int | None = None
    """Go on with as few as this many while there is no room for more; default: wait for all of them."""
    cpus_per_worker: int | None = None
    """Default: the cluster's CPUs divided by the workers."""
    use_gpu: bool = False
    """A GPU for each worker."""
    address: str | None = None
    """A running Ray cluster (`auto`, or host:port); default: Ray is started on this machine."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line has the last word."""
    checkpoint_minutes: float = 10.0
    """Time between checkpoints within an epoch; there is one at its end, too. 0: only there."""
    max_failures: int = 3
    """Worker failures after which the run gives up; until then it restarts from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"min_workers must be between 1 and num_workers {self.num_workers}, got {self.min_workers}"
            )
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise ValueError(f"cpus_per_worker must be at least 1, got {self.cpus_per_worker}")
        if self.checkpoint_minutes < 0:
            raise ValueError(f"checkpoint_minutes must not be negative, got {self.checkpoint_minutes}")
        if self.from_images and self.also_features:
            raise ValueError("--also-features is for training on features: with --from-images, leave it out")
        if not self.from_images and (self.encoder.train_from is not None or not self.encoder.augment):
            raise ValueError(
                "--encoder.train-from and --encoder.no-augment are for --from-images: features stay as they are"
            )
        if (self.data.objects_file is None) != (self.training.objects_weight == 0):
            raise ValueError("--data.objects-file and --training.objects-weight go together: give both or neither")
        if self.data.objects_file is not None and self.encoder.train_from is None:
            raise ValueError("objects train the encoder: --data.objects-file needs --encoder.train-from")
        if self.start_from is not None and self.encoder.checkpoint is not None:
            raise ValueError("--start-from brings its own encoder: leave out --encoder.checkpoint")
        if self.teachers and self.training.self_critical.weight:
            raise ValueError(
                "--teachers know nothing of captions that are drawn: leave out one of them and "
                "--training.self-critical.weight"
            )
        unnamed = replace(self.encoder, checkpoint=None)
        if not self.from_images and self.encoder.name is None and unnamed != EncoderSettings():
            raise ValueError("say with --encoder.name which encoder made the features")

    @property
    def encoder_checkpoint(self) -> str | None:
        """The checkpoint whose encoder it is, whether its decoder is gone on with or not."""
        return self.start_from or self.encoder.checkpoint

    def resolved(self) -> TrainSettings:
        """The same with absolute paths: workers have another working directory."""

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
