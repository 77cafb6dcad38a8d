"""The settings of the batch jobs, one frozen dataclass per job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from captionlib.captioners.options import CaptionerOptions
from captionlib.captioners.zoo import default_search
from captionlib.config import CAPTION_BATCH, SearchConfig
from captionlib.errors import UserError
from captionlib.ranges import NOT_NEGATIVE, SHARE, at_least, check_ranges
from captionlib.storage.access import AccessSettings
from jobs.cli.arguments import peek
from jobs.cli.encoder import EncoderSettings
from jobs.inputs.run_shard import RunShard
from jobs.inputs.settings import SourceSettings
from jobs.outputs import schemas
from jobs.outputs.export import EXPORTS
from jobs.outputs.sidecar import SidecarMode

_BATCH = f"{CAPTION_BATCH.cpu}, on a GPU {CAPTION_BATCH.gpu}, fewer for features and large models"
_EXPORTS = "{" + ",".join(EXPORTS) + "}"


def _hint(metavar: str, default: str) -> Any:
    """Describe a flag that has no plain default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class WorkSettings:
    """How the work is distributed. These settings do not change the captions."""

    images_per_chunk: Annotated[int | None, _hint("INT", "up to 512, fewer when there are few")] = None
    """Number of images that are committed together; a crash loses at most the chunks in progress."""
    batch_size: Annotated[int | None, _hint("INT", _BATCH)] = None
    """Number of images per batch of the model."""
    num_actors: Annotated[int | None, _hint("INT", "one per GPU, or per CPU up to 8 on a machine")] = None
    """Number of copies of the model."""
    address: Annotated[str | None, _hint("ADDRESS", "RAY_ADDRESS, or else this machine")] = None
    """Address of a running Ray cluster, such as "auto". "local" starts Ray on this machine even for few images."""
    num_cpus: Annotated[int | None, _hint("INT", "all that are there")] = None
    """CPUs that Ray may use on this machine; on a cluster, the number of CPUs to wait for before the work begins."""
    num_gpus: Annotated[int | None, _hint("INT", "all that are there")] = None
    """The same for GPUs."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "--",
            images_per_chunk=at_least(1),
            batch_size=at_least(1),
            num_actors=at_least(1),
            num_cpus=at_least(1),
            num_gpus=at_least(1),
        )


@dataclass(frozen=True, kw_only=True)
class FaultSettings:
    """What happens when images or connections fail."""

    max_error_share: float = 0.5
    """Stop if more than this share of the images fails, after the first 1,000."""
    transport_retries: int = 3
    """Number of rounds in which images that could not be fetched are retried while no server answers. If other web
servers answer, images are retried once, at the end, and then become rows with an error."""
    transport_pause: float = 10.0
    """Seconds before the first of these rounds. The pause triples from round to round (exponential back-off)."""

    def __post_init__(self) -> None:
        check_ranges(self, "--", max_error_share=SHARE, transport_retries=NOT_NEGATIVE, transport_pause=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Settings that all batch jobs share."""

    input: Positional[str]
    """Images: a folder (searched recursively), a file, a pattern such as "photos/*.jpg", or a URL such as
s3://bucket/photos; also a manifest, a WebDataset or Parquet files (see --input-format)."""
    output: Positional[str]
    """Destination of the rows: a folder, or a URL such as s3://bucket/captions. Running the same command again resumes
the job and processes new images."""
    also: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Another input. May be repeated."""
    limit: Annotated[int | None, _hint("N", "all")] = None
    """Process only the first N images of the inputs (with --shard, of the shard)."""
    shard: Annotated[str | None, _hint("K/N", "all images")] = None
    """Process only the K-th of N shards of the images, in the folder OUTPUT/shard-K-of-N. For very many images: start N
runs with the same inputs, settings and output, on as many machines or clusters as you like, and merge their outputs
with python -m jobs.merge OUTPUT."""
    quiet: bool = False
    """Print only errors."""
    overwrite: bool = False
    """Delete the existing output and start from the beginning."""
    retry_errors: bool = False
    """Process images again that failed in earlier runs."""
    config: Annotated[Path | None, _hint("FILE", "none")] = None
    """A YAML or TOML file with any of these settings; the command line overrides it."""
    source: Annotated[SourceSettings, OmitArgPrefixes] = field(default_factory=SourceSettings)
    work: Annotated[WorkSettings, OmitArgPrefixes] = field(default_factory=WorkSettings)
    faults: Annotated[FaultSettings, OmitArgPrefixes] = field(default_factory=FaultSettings)
    access: Annotated[AccessSettings, OmitArgPrefixes] = field(default_factory=AccessSettings)

    def __post_init__(self) -> None:
        check_ranges(self, "--", limit=at_least(1))
        _ = self.run_shard  # checks it
        if self.overwrite and self.retry_errors:
            raise UserError("--overwrite does everything anew, so --retry-errors has nothing to add: leave one out")
        for name, _ in self.source.carried:
            if name in schemas.CAPTIONS.names or name == "features":
                raise UserError(
                    f"--columns {name}: the output has a column of that name; give it another one with "
                    f"--columns NEW_NAME={name}"
                )

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs, in order."""
        return (self.input, *self.also)

    @property
    def run_shard(self) -> RunShard | None:
        """The shard that this run processes; None for all images.

        Raises:
            UserError: `shard` is not K/N.
        """
        return None if self.shard is None else RunShard.parse(self.shard)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(BatchSettings):
    """Settings of the caption job."""

    model: Annotated[str, _hint("MODEL", "the one that comes with the project")] = "default"
    """A checkpoint of this project, as a folder or a URL. Or hf:NAME, a model of the Hugging Face hub such as
hf:Salesforce/blip-image-captioning-base, or hf:FOLDER. Or openai:NAME, a model behind a server (see --endpoint)."""
    captioner: Annotated[CaptionerOptions, OmitArgPrefixes] = field(default_factory=CaptionerOptions)
    min_confidence: Annotated[float | None, _hint("FLOAT", "none")] = None
    """Mark captions of a lower confidence (0 to 1): low_confidence is true in their rows. No row is left out."""
    show: int = 0
    """Print this many captions at the end."""
    report: bool = True
    """Write report.html, a page with a sample of images and captions."""
    dry_run: bool = False
    """Count the images, caption the first hundred and estimate the duration of the whole job; write nothing."""
    jsonl: bool = False
    """At the end, also write all rows to captions.jsonl (the same as --export jsonl)."""
    csv: bool = False
    """At the end, also write all rows to captions.csv (the same as --export csv)."""
    export: Annotated[tuple[str, ...], UseAppendAction, tyro.conf.arg(metavar=_EXPORTS)] = ()
    """At the end, also write the captions in another format: JSON lines, CSV, the results JSON of COCO, or, with the
images, a WebDataset or a Hugging Face imagefolder. May be repeated."""
    sidecar: Annotated[SidecarMode | None, _hint("{skip,overwrite,append}", "none")] = None
    """Also write each caption to a text file beside its image, such as photo.txt beside photo.jpg. An existing file is
kept (skip), replaced (overwrite) or extended by a line (append). With skip, images that have one are not read. If two
images would share a file, as photo.jpg and photo.png, the later one gets photo.png.txt."""
    sidecar_prefix: str = ""
    """Text before each caption in these files."""
    sidecar_suffix: str = ""
    """Text after each caption in these files."""
    sidecar_ending: str = ".txt"
    """Ending of these files, such as .caption."""
    sidecar_folder: Annotated[str | None, _hint("DIR", "beside the images")] = None
    """A folder or URL in which these files get a tree like that of the inputs."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.sidecar_prefix or self.sidecar_suffix or self.sidecar_folder or self.sidecar_ending != ".txt"
        if self.sidecar is None and given:
            raise UserError("--sidecar-prefix, -suffix, -ending and -folder are for --sidecar: give that too")
        if self.shard is not None and self.sidecar_folder is not None and self.also:
            raise UserError(
                "--sidecar-folder with --shard takes one input: images of the same name in two inputs would share a "
                "text file, and may be in the shards of two runs. Give each input an output and a folder of its own"
            )
        if not re.fullmatch(r"\.\w+", self.sidecar_ending):
            raise UserError(f"--sidecar-ending must be a dot and letters, got {self.sidecar_ending!r}")
        unknown = sorted(set(self.export) - set(EXPORTS))
        if unknown:
            raise UserError(f"--export must be one of {_EXPORTS}, got {', '.join(unknown)}")
        check_ranges(self, "--", min_confidence=SHARE, show=NOT_NEGATIVE)
        if self.dry_run and (self.overwrite or self.retry_errors):
            raise UserError("--dry-run leaves the output alone: leave out --overwrite and --retry-errors")


def default_search_of(arguments: Sequence[str]) -> SearchConfig:
    """Return the default search settings of the model that a command line names."""
    revision = peek(arguments, "revision")
    return default_search(peek(arguments, "model") or "default", CaptionerOptions(revision=revision))


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(BatchSettings):
    """Settings of the feature job."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    flip: bool = False
    """Also write the features of the mirrored images, to the folder features_flipped."""
    crops: int = 0
    """Also write the features of this number of random crops of each image, to the folders features_crop_1 and so on. A
crop covers at least half of the image and is mirrored with probability 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "--", crops=NOT_NEGATIVE)
