"""Command-line options that select input images, shared by the caption job and the feature job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from captionlib.errors import UserError
from captionlib.images.decode import MAX_PIXELS
from captionlib.ranges import at_least, check_ranges
from jobs.inputs.formats import INPUT_FORMATS

AUTO = "auto"
MAX_DECODE_SECONDS = 60.0
"""The largest images that are allowed take up to half of it on one core, nearly all others a hundredth of a second."""
_DAY = 86_400
_FORMATS = "{" + ",".join([AUTO, *INPUT_FORMATS]) + "}"


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What the inputs contain, and which of their images are processed."""

    input_format: Annotated[str, arg(metavar=_FORMATS)] = AUTO
    """What an input contains: image files; tars of a WebDataset; Parquet files with the bytes of images; a manifest of
paths or URLs (Parquet, CSV, JSON lines, or text with one per line); or a Hugging Face imagefolder, whose metadata.csv
or metadata.jsonl has columns. By default the ending .tar, .parquet, .csv, .tsv, .jsonl or .txt decides, and a folder
with such metadata is an imagefolder where --columns asks for them; all other inputs contain image files."""
    include: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Process only images that match a pattern such as "*_front.jpg" or "2024/*". The pattern is compared with the path
and with the rest of the path after each slash. May be repeated."""
    exclude: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Skip images that match a pattern of the same form. May be repeated."""
    by_content: bool = False
    """Also examine files without an image extension, and process those whose first bytes are those of an image."""
    max_pixels: int = MAX_PIXELS
    """Largest image that is decoded; larger ones are errors. Decoding needs up to 16 bytes per pixel, for which room is
planned. Files of a format with reduced versions (JPEG, JPEG 2000, pyramidal TIFF) may have 16 times as many."""
    max_decode_seconds: float = MAX_DECODE_SECONDS
    """Longest time for decoding one image, without reading it; images that take longer are errors (DecodeTimeout)."""
    columns: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A column of a manifest or of Parquet files to copy into the output; for a WebDataset `key`, a member such as
`txt`, or a field of `json`. NEW=OLD renames it. May be repeated."""
    only_missing: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all images)")] = None
    """Process only images without a value in this column of a manifest, such as `caption`; others are not read."""
    path_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: path, url, …)")] = None
    """The column of a manifest that contains paths or URLs."""
    image_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: jpg, image, …)")] = None
    """The column of Parquet files that contains the bytes of images."""
    root: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: the manifest's folder)")] = None
    """The folder or URL that relative paths of a manifest start from."""

    def __post_init__(self) -> None:
        if self.input_format not in (AUTO, *INPUT_FORMATS):
            raise UserError(f"--input-format must be one of {_FORMATS}, got {self.input_format}")
        check_ranges(self, "--", max_pixels=at_least(1))
        if not 0 < self.max_decode_seconds <= _DAY:
            raise UserError(
                f"--max-decode-seconds must be above 0 and at most {_DAY}, a day; got {self.max_decode_seconds:g}"
            )
        names = [ours for ours, _ in self.carried]
        for name in names:
            if not name:
                raise UserError(f"--columns takes NAME or NEW=OLD, got {', '.join(self.columns)}")
            if names.count(name) > 1:
                raise UserError(f"--columns {name} is given twice")

    @property
    def carried(self) -> tuple[tuple[str, str], ...]:
        """Pairs (name in the output, name in the input) of the columns that are copied."""
        pairs = [text.partition("=") for text in self.columns]
        return tuple((ours, theirs or ours) for ours, _, theirs in pairs)
