"""Score captions against reference captions, per image and for the whole set.

    python -m jobs.evaluate CAPTIONS FLICKR8K --split dev
    python -m jobs.evaluate results.json captions_val2017.json --kind coco

Captions and references are matched by the file name of the image. Ray is not needed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from tyro.conf import Positional

from captionlib.errors import UserError
from captionlib.metrics import LABELS, METRICS, PYTHON_METRICS, Diversity, Scores, score_captions
from captionlib.metrics import diversity as diversity_metric
from captionlib.storage.folder import Folder
from captionlib.text import tokenize
from jobs.evaluation.inputs import Match, Matched, Pair, coco_numbers, match, read_captions, read_references
from jobs.outputs.run_record import now, versions

Kind = Literal["flickr8k", "flickr30k", "coco", "karpathy", "csv", "parquet"]

IMAGE_SCORES = pa.schema(
    [
        ("path", pa.string()),
        ("caption", pa.string()),
        ("references", pa.list_(pa.string())),
        *((name, pa.float64()) for name in LABELS),  # null if the metric was left out
    ]
)


PROG = "python -m jobs.evaluate"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of the evaluation."""

    captions: Positional[str]
    """Captions to score: the output of the caption job, a Parquet file with the columns path and caption, or JSON in
the format of COCO results."""
    references: Positional[str]
    """The dataset: its folder (Flickr8k, Flickr30k, COCO) or its captions file (all formats)."""
    output: str | None = None
    """Folder or URL for scores.json, images.parquet and report.html (default: CAPTIONS with -scores)."""
    kind: Kind = "flickr8k"
    """Format of the references."""
    split: Literal["all", "train", "dev", "val", "test"] = "all"
    """Split of the dataset."""
    split_file: str | None = None
    """A file with the image names of the split, if the dataset's folder does not contain one."""
    images_root: str | None = None
    """Folder of the dataset's images, for the pictures in the report."""
    match: Match = "name"
    """Match captions and references by the file name of the image, or by its whole path."""
    partial: bool = False
    """Score only the images that have a caption; without this, a missing caption is an error."""
    train_captions: str | None = None
    """Training captions in the same format; used to report the share of captions that occur verbatim in them."""
    train_split: Literal["all", "train", "dev", "val", "test"] = "train"
    """Split of these training captions."""
    java: bool = True
    """Also compute METEOR and SPICE, if Java and pycocoevalcap are installed."""
    report: bool = True
    """Write report.html, a page with the best and the worst captions."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line overrides it."""

    @property
    def output_folder(self) -> str:
        """Folder of the results."""
        if self.output is not None:
            return self.output
        captions = self.captions.rstrip("/")
        return captions.removesuffix(".parquet").removesuffix(".json") + "-scores"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from jobs.cli.arguments import parse
    from jobs.cli.exit_codes import run_command

    settings = parse(EvaluateSettings, argv, prog=PROG, description=__doc__ or "")
    return run_command(PROG, lambda: evaluate(settings))


def evaluate(settings: EvaluateSettings) -> int:
    """Read and match captions and references, compute the scores, write and print them; return the exit code.

    Raises:
        UserError: captions and references do not match, or a file has the wrong format.
        OSError: a file cannot be read or written.
    """
    references = read_references(
        settings.kind,
        settings.references,
        split=settings.split,
        split_file=settings.split_file,
        images_root=settings.images_root,
    )
    captions = read_captions(settings.captions, lambda: coco_numbers(settings.kind, settings.references, references))
    matched = match(captions, references, settings.match)
    notes = _notes_on_match(matched, settings.partial)
    pairs = matched.pairs
    scores = score_captions(
        {key: pair.caption for key, pair in pairs.items()},
        {key: pair.references for key, pair in pairs.items()},
        METRICS if settings.java else PYTHON_METRICS,
    )
    diversity = diversity_metric.statistics(tokenize(pair.caption) for pair in pairs.values()).score(
        _training_captions(settings)
    )
    notes += scores.notes
    rows = _image_rows(pairs, scores)
    folder = Folder.of(settings.output_folder)
    folder.write("scores.json", _scores_json(settings, scores, diversity, notes))
    folder.write("images.parquet", _parquet(rows))
    if settings.report:
        from captionlib.report import render_page
        from jobs.evaluation.report import evaluation_page

        page = evaluation_page(rows, _table(scores, diversity), scores.signature, notes)
        folder.write("report.html", render_page(page))
    _print(scores, diversity, notes, folder.url)
    return 0


def _notes_on_match(matched: Matched, partial: bool) -> list[str]:
    notes = []
    missing, total = len(matched.uncaptioned), len(matched.uncaptioned) + len(matched.pairs)
    if missing:
        listed = ", ".join(matched.uncaptioned[:3]) + (", …" if missing > 3 else "")
        what = f"{missing:,} of {total:,} images with references have no caption ({listed})"
        if not partial or not matched.pairs:
            raise UserError(f"{what}: caption them, choose the split, or score the others with --partial")
        notes.append(f"{what}: the scores are those of the others")
    if matched.num_other_captions:
        notes.append(f"{matched.num_other_captions:,} captions of images without references were ignored")
    return notes


def _training_captions(settings: EvaluateSettings) -> set[tuple[str, ...]] | None:
    if settings.train_captions is None:
        return None
    records = read_references(
        settings.kind, settings.train_captions, split=settings.train_split, split_file=None, images_root=None
    )
    return {tuple(tokenize(caption)) for record in records for caption in record.captions}


def _image_rows(pairs: Mapping[str, Pair], scores: Scores) -> list[dict[str, Any]]:
    return [
        {
            "path": pair.path,
            "reference_path": pair.reference_path,
            "caption": pair.caption,
            "references": list(pair.references),
            **{name: scores.images[key].get(name) for name in LABELS},
        }
        for key, pair in pairs.items()
    ]


def _parquet(rows: Iterable[Mapping[str, Any]]) -> memoryview:
    columns = [[row[name] for row in rows] for name in IMAGE_SCORES.names]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=IMAGE_SCORES), sink, compression="zstd")
    return memoryview(sink.getvalue())


def _scores_json(settings: EvaluateSettings, scores: Scores, diversity: Diversity, notes: Sequence[str]) -> bytes:
    record = {
        "scores": dict(scores.corpus),
        "signature": scores.signature,
        "num_images": scores.num_images,
        "diversity": dataclasses.asdict(diversity),
        "notes": list(notes),
        "settings": dataclasses.asdict(settings),
        "versions": versions(),
        "written": now(),
    }
    return json.dumps(record, indent=2, ensure_ascii=False, default=str).encode() + b"\n"


def _table(scores: Scores, diversity: Diversity) -> list[tuple[str, str]]:
    """Return name and value of each score for printing."""
    table = [(LABELS[name].title, f"{value:.4f}") for name, value in scores.corpus.items()]
    table += [
        ("images", f"{scores.num_images:,}"),
        ("distinct captions", f"{diversity.num_distinct:,}"),
        ("words used", f"{diversity.vocabulary_used:,}"),
        ("words per caption", f"{diversity.mean_length:.1f}"),
        ("broken-off captions", f"{diversity.share_dangling:.1%}"),
    ]
    if diversity.share_from_training is not None:
        table.append(("captions of the training set", f"{diversity.share_from_training:.1%}"))
    return table


def _print(scores: Scores, diversity: Diversity, notes: Sequence[str], where: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _table(scores, diversity):
        table.add_row(name, value)
    # Without markup, so that paths are not interpreted, and without wrapping, so that logs keep whole lines.
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print(scores.signature)
    for note in notes:
        console.print(f"note: {note}")
    console.print(f"written to {where}")


if __name__ == "__main__":
    sys.exit(main())
