"""Settings of the training job: what its command line takes, and what is stored with the run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from captionlib.config import DecoderConfig, SearchConfig
from captionlib.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Captions, and which images they belong to."""

    kind: Literal["flickr8k", "flickr30k", "coco", "karpathy", "csv", "parquet"] = "flickr8k"
    """Form of the captions."""
    root: str | None = None
    """The dataset's folder, such as the one with Flickr8k.token.txt."""
    captions_file: str | None = None
    """The captions, where they are not in their usual place below the root."""
    train_split: str = "train"
    dev_split: str = "dev"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train a caption decoder on features, data-parallel on Ray Train."""

    features: Annotated[str, tyro.conf.Positional]
    """What jobs.extract_features wrote, of both the train and the dev images."""
    run: Annotated[str, tyro.conf.Positional]
    """Folder or URL of the run: checkpoints, metrics, and the best one ready for jobs.caption. A folder that
    already holds a run of the same settings is gone on with."""
    also_features: tuple[str, ...] = ()
    """Further features of the same images, such as mirrored ones; each step takes one or the other."""
    start_from: str | None = None
    """A checkpoint whose decoder and words to start from, such as another run's `best`."""
    data: DataSettings = field(default_factory=DataSettings)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    search: SearchConfig = field(default_factory=SearchConfig)
    """How dev images are captioned after each epoch, and the default of the exported checkpoint."""
    num_workers: int = 1
    """Processes that share each step."""
    cpus_per_worker: int | None = None
    """Default: the cluster's CPUs divided by the workers."""
    use_gpu: bool = False
    """A GPU for each worker."""
    address: str | None = None
    """A running Ray cluster (`auto`, or host:port); default: Ray is started on this machine."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line has the last word."""
    max_failures: int = 3
    """Worker failures after which the run gives up; until then it restarts from its last checkpoint."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {self.num_workers}")

    def storage(self) -> tuple[str, str]:
        """(parent, name) of the run's folder; a local one made absolute."""
        run = self.run.rstrip("/") if "://" in self.run else os.path.abspath(os.path.expanduser(self.run))
        parent, name = run.rsplit("/", 1)
        return parent, name
