"""A job's settings: the command line and an optional file → one frozen dataclass, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from captionlib.config import EngineKind, SearchConfig
from jobs.inputs.settings import SourceSettings
from jobs.outputs import schemas
from jobs.outputs.sidecar import SidecarMode

DEFAULT_MODEL = str(Path(__file__).resolve().parents[2] / "captionlib" / "pretrained" / "default")
"""The checkpoint that comes with the project."""


def _hint(metavar: str, default: str) -> Any:
    """How a flag without a plain default is described."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """How the work is shared out. The captions are the same whatever is chosen here."""

    images_per_chunk: Annotated[int | None, _hint("INT", "up to 512, fewer when there are few")] = None
    """Images that are finished, or lost by a crash, together."""
    batch_size: Annotated[int | None, _hint("INT", "32, on a GPU 512")] = None
    """Images that go through the model together."""
    num_actors: Annotated[int | None, _hint("INT", "one per GPU; without GPUs, one per 8 CPUs or machine")] = None
    """Copies of the model."""
    address: Annotated[str | None, _hint("ADDRESS", "RAY_ADDRESS, or else this machine")] = None
    """A running Ray cluster, such as "auto"; "local" is a Ray on this machine, even for few images."""
    num_cpus: Annotated[int | None, _hint("INT", "all that are there")] = None
    """CPUs that Ray on this machine may use; on a cluster, how many to wait for before the work begins."""
    num_gpus: Annotated[int | None, _hint("INT", "all that are there")] = None
    """GPUs, likewise."""

    def __post_init__(self) -> None:
        for name in ("images_per_chunk", "batch_size", "num_actors", "num_cpus", "num_gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class FaultSettings:
    """What happens when images or the way to them fail."""

    max_error_share: float = 0.5
    """Stop when more than this share of images fails, after the first 1,000: then the input is wrong."""
    transport_retries: int = 3
    """How often images that could not be fetched are tried again, at the end."""
    transport_pause: float = 10.0
    """Seconds before the first of these tries; each next pause is three times as long."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_error_share <= 1:
            raise ValueError(f"--max-error-share must be in [0, 1], got {self.max_error_share}")
        if self.transport_retries < 0 or self.transport_pause < 0:
            raise ValueError("--transport-retries and --transport-pause must not be negative")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What every job over a set of images has in common."""

    input: Positional[str]
    """Images: a folder (with all folders in it), a file, a pattern such as "photos/*.jpg", or a URL such as
s3://bucket/photos; a manifest, a WebDataset or Parquet files (see --input-format)."""
    output: Positional[str]
    """Where the rows go: a folder, or a URL such as s3://bucket/captions. The same command again goes on where
it stopped, and does what is new."""
    also: Annotated[tuple[str, ...], UseAppendAction] = ()
    """One more input; may be given several times."""
    overwrite: bool = False
    """Delete what the output holds and start anew."""
    retry_errors: bool = False
    """Try the images again that failed in earlier runs."""
    config: Annotated[Path | None, _hint("FILE", "none")] = None
    """A YAML or TOML file with any of these settings; the command line has the last word."""
    source: Annotated[SourceSettings, OmitArgPrefixes] = field(default_factory=SourceSettings)
    work: Annotated[WorkSettings, OmitArgPrefixes] = field(default_factory=WorkSettings)
    faults: Annotated[FaultSettings, OmitArgPrefixes] = field(default_factory=FaultSettings)

    def __post_init__(self) -> None:
        if self.overwrite and self.retry_errors:
            raise ValueError("--overwrite does everything anew, so --retry-errors has nothing to add: leave one out")
        for name, _ in self.source.carried:
            if name in schemas.CAPTIONS.names or name == "features":
                raise ValueError(
                    f"--columns {name}: the output has a column of that name; give it another one with "
                    f"--columns NEW_NAME={name}"
                )

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs, in order."""
        return (self.input, *self.also)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(BatchSettings):
    """Settings of the caption job."""

    model: Annotated[str, _hint("DIR", "the one that comes with the project")] = "default"
    """The checkpoint: a folder, or a URL."""
    engine: EngineKind = "auto"
    """How the encoder is run. On a CPU, `auto` is OpenVINO, in 8-bit integers (int8) where the checkpoint has an
encoder in these, else in float32 (openvino); on a GPU, and where there is no OpenVINO, it is PyTorch (torch)."""
    show: int = 0
    """Print this many captions at the end."""
    report: bool = True
    """Write report.html, a page with a sample of images and captions."""
    dry_run: bool = False
    """Count the images, caption the first hundred, and say how long all would take; write nothing."""
    jsonl: bool = False
    """Write all rows to captions.jsonl as well, at the end."""
    csv: bool = False
    """Write all rows to captions.csv as well, at the end."""
    sidecar: Annotated[SidecarMode | None, _hint("{skip,overwrite,append}", "none")] = None
    """Write each caption into a text file beside its image too, photo.txt beside photo.jpg; where there is one:
leave it, replace it, or add a line."""
    sidecar_prefix: str = ""
    """What such a text begins with."""
    sidecar_suffix: str = ""
    """What such a text ends with."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sidecar is None and (self.sidecar_prefix or self.sidecar_suffix):
            raise ValueError("--sidecar-prefix and --sidecar-suffix are for --sidecar: give that too")
        if self.dry_run and (self.overwrite or self.retry_errors):
            raise ValueError("--dry-run leaves the output alone: leave out --overwrite and --retry-errors")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(BatchSettings):
    """Settings of the feature job."""

    encoder: str = "efficientnet_lite0"
    """The network, by its name in its library."""
    kind: Literal["efficientnet_lite", "torchvision", "timm"] = "efficientnet_lite"
    """The library."""
    features: Literal["grid", "pooled", "logits"] = "grid"
    """Which of the network's outputs: positions of the last stage, their mean, or the classifier's."""
    size: int | None = None
    """Side of the square that images are scaled to, in pixels; default: what the weights were trained with."""
    model: Annotated[str | None, _hint("DIR", "the library's ImageNet weights")] = None
    """A checkpoint, folder or URL, whose encoder is taken instead."""
    flip: bool = False
    """Write the features of the mirrored images as well, into the folder features_flipped."""
    crops: int = 0
    """Write the features of so many random crops of each image as well, mirrored or not and of at least half of
    it, into the folders features_crop_1 and so on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops < 0:
            raise ValueError(f"crops must not be negative, got {self.crops}")
