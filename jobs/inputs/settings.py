"""What counts as an image of an input: the flags that both jobs over images share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

InputFormat = Literal["auto", "images", "webdataset", "parquet", "manifest"]


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What the inputs are, and which of their images are taken."""

    input_format: InputFormat = "auto"
    """What an input holds: image files; tars of a WebDataset; Parquet files with the images' bytes; or a manifest that
lists paths or URLs (Parquet, CSV, or text with one a line). By default an input that ends in .tar, .parquet, .csv,
.tsv or .txt is what it ends in, and any other holds image files."""
    include: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Only images whose path, or its end from any slash on, matches a pattern such as "*_front.jpg" or "2024/*"; may be
given several times."""
    exclude: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Not those that match this one, likewise."""
    by_content: bool = False
    """Look into files whose names do not end as those of images do, and take those that begin as images do."""
    columns: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A column of a manifest or of Parquet files to carry along into the output, or, of a WebDataset, `key`, a member
such as `txt`, or a field of `json`; OURS=THEIRS gives it another name. May be given several times."""
    path_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: path, url, …)")] = None
    """The column of a manifest that holds paths or URLs."""
    image_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: jpg, image, …)")] = None
    """The column of Parquet files that holds the images' bytes."""
    root: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: the manifest's folder)")] = None
    """What a manifest's paths start from, where they are relative."""

    def __post_init__(self) -> None:
        names = [ours for ours, _ in self.carried]
        for name in names:
            if not name:
                raise ValueError(f"--columns takes NAME or OURS=THEIRS, got {', '.join(self.columns)}")
            if names.count(name) > 1:
                raise ValueError(f"--columns {name} is given twice")

    @property
    def carried(self) -> tuple[tuple[str, str], ...]:
        """(name in the output, name in the input) of each column that is carried along."""
        pairs = [text.partition("=") for text in self.columns]
        return tuple((ours, theirs or ours) for ours, _, theirs in pairs)
