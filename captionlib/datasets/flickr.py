"""Flickr8k and Flickr30k: the official token file with split files, and the CSV forms that circulate.

Flickr8k: Hodosh, Young & Hockenmaier, "Framing Image Description as a Ranking Task", JAIR 2013.
Flickr30k: Young et al., "From image descriptions to visual denotations", TACL 2014.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from captionlib.datasets import splits, table
from captionlib.datasets.files import Source, locate, locate_images, read_lines, read_text
from captionlib.datasets.records import CaptionedImage, CaptionRow, DatasetError, group_by_image, join_path
from captionlib.storage import inputs

# `name.jpg#0<TAB>caption`
_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#(?P<number>\d+)[ ]*\t(?P<caption>.*)")
# Kaggle's results.csv lacks one separator: `2199200615.jpg| 4   A dog runs across the grass .`
_NUMBER_AND_CAPTION = re.compile(r"\s*\d+\s+(?P<caption>\S.*)")
# Flickr8k.token.txt has five captions for this name, but no such image was ever published.
_NO_SUCH_IMAGE = "2258277193_586949ec62.jpg.1"


@dataclass(frozen=True)
class Layout:
    """Candidate names of a dataset's files in its folder; the first that exists is used."""

    title: str
    captions: tuple[str, ...]
    images: tuple[str, ...]
    splits: Mapping[str, str]


FLICKR8K = Layout(
    title="Flickr8k",
    captions=("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.txt"),
    images=("Images", "Flicker8k_Dataset", "Flickr8k_Dataset"),
    splits={split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")},
)
FLICKR30K = Layout(
    title="Flickr30k",
    captions=("results_20130124.token", "results.csv", "captions.txt"),
    images=("flickr30k-images", "flickr30k_images", "Images"),
    # The lists are those of Flickr30k Entities (Plummer et al. 2015); the dataset was published without splits.
    splits={"train": "train.txt", "dev": "val.txt", "test": "test.txt"},
)


def read_flickr8k(source: Source) -> list[CaptionedImage]:
    """Flickr8k: 6,000 training, 1,000 dev and 1,000 test images with five captions each."""
    return _read(FLICKR8K, source)


def read_flickr30k(source: Source) -> list[CaptionedImage]:
    """Flickr30k: 31,783 images with five captions each."""
    return _read(FLICKR30K, source)


def _read(layout: Layout, source: Source) -> list[CaptionedImage]:
    captions_file = locate(
        source.captions_file,
        source.root,
        layout.captions,
        f"{layout.title}'s captions, lines of name.jpg#0<TAB>caption or a CSV file with a header",
        "captions_file",
    )
    images_root = locate_images(source, captions_file, layout.images, f"the folder of {layout.title}'s images")
    records = group_by_image(_caption_rows(captions_file), images_root)
    if source.split != "all":
        split_file = locate(
            source.split_file,
            source.root,
            _places(layout, source.split),
            f"the {source.split} split of {layout.title}, one image name per line",
            "split_file",
        )
        return splits.select(records, source.split, split_file)
    return splits.assign(records, _split_files(layout, source.root))


def _places(layout: Layout, split: str) -> tuple[str, ...]:
    # Flickr8k's archive of texts unpacks into a folder of its own.
    return layout.splits[split], f"{layout.title}_text/{layout.splits[split]}"


def _split_files(layout: Layout, root: str | None) -> dict[str, str]:
    """Return the split files that exist; the split `all` needs none."""
    if root is None:
        return {}
    files = {}
    for split in layout.splits:
        present = [path for place in _places(layout, split) if inputs.exists(path := join_path(root, place))]
        if present:
            files[split] = present[0]
    return files


def _caption_rows(path: str) -> Iterator[CaptionRow]:
    """Read the rows of any of the formats; the header, which the token file lacks, identifies the format."""
    _, first = next(read_lines(path), ("", ""))
    if re.match(r"\s*\"?image(_name)?\"?\s*\|", first):
        return _pipe_rows(path)
    if re.match(r"\s*\"?image(_name)?\"?\s*,", first):
        return table.csv_rows(path, read_text(path))
    return _token_rows(path)


def _token_rows(path: str) -> Iterator[CaptionRow]:
    seen: dict[str, str] = {}
    for where, line in read_lines(path):
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            raise DatasetError(f"{where}: expected name.jpg#0<TAB>caption, got {line[:80]!r}")
        if match["name"] == _NO_SUCH_IMAGE:
            continue
        key = f"{match['name']}#{match['number']}"
        if key in seen:
            raise DatasetError(f"{where}: {key} is there twice, first at {seen[key]}")
        seen[key] = where
        yield CaptionRow(where, match["name"], match["caption"])


def _pipe_rows(path: str) -> Iterator[CaptionRow]:
    """Lines of `name.jpg| 0| caption` after a header."""
    lines = read_lines(path)
    next(lines)
    for where, line in lines:
        # The caption is the last field and is not quoted, so it may contain a bar.
        name, _, rest = line.partition("|")
        number, bar, caption = rest.partition("|")
        if not bar and (match := _NUMBER_AND_CAPTION.fullmatch(rest)):
            number, caption = "", match["caption"]
        elif not number.strip().isdigit():
            raise DatasetError(f"{where}: expected name.jpg| 0| caption, got {line[:80]!r}")
        yield CaptionRow(where, name, caption)
