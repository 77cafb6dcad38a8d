"""Writes the report files of a run: metrics as CSV, JSON and TensorBoard events, curves, and a page with dev photos.

All files are derived from the rows of the epochs and rewritten after each epoch, so those of a resumed run are
complete.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captionlib.config import to_dict
from captionlib.images.decode import ImageDecodeError, decode_image
from captionlib.report import Card, Section, curves_png, render_page, thumbnail_jpeg, training_page
from captionlib.storage.errors import InputFault
from captionlib.storage.folder import Folder
from captionlib.storage.paths import is_local
from captionlib.storage.read import read_bytes
from jobs.training.checkpoint import SCORE
from jobs.training.data import Prepared
from jobs.training.dev_evaluation import CAPTIONS, shown_images

Row = Mapping[str, Any]
_SIDE = 800  # side in pixels to which a photo is decoded for its thumbnail


class RunReport:
    """Writes the report files of a run's folder."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.folder = Folder.of(prepared.settings.run)
        self._thumbnails: dict[int, bytes] | None = None
        self._has_complained = False

    def write(self, history: Sequence[Row]) -> None:
        """Write all files. A file that fails is reported once, and training continues."""
        if not history:
            return
        try:
            self._write(history)
        except Exception as error:  # a training run must not end because of its report
            if not self._has_complained:
                print(f"the report in {self.folder.url} could not be written: {error}", file=sys.stderr, flush=True)
            self._has_complained = True

    def _write(self, history: Sequence[Row]) -> None:
        rows = metrics_only(history)
        self.folder.write("metrics.json", json.dumps(rows, indent=2).encode())
        self.folder.write("metrics.csv", metrics_csv(rows))
        events = self.folder / "tensorboard"
        there = events.names()
        for row in rows:
            # One file per epoch, so that no file changes; TensorBoard reads them in order.
            name = f"events.out.tfevents.{row['epoch']:010d}.epoch"
            if name not in there:
                events.write(name, tensorboard_events(row))
        settings = self.prepared.settings
        title = f"{self.prepared.encoder.name} + {settings.decoder.kind}"
        by_epoch = [{name: value for name, value in row.items() if name != "step"} for row in rows]
        page = training_page(
            by_epoch,
            title=title,
            text=self.folder.url,
            seconds=sum(row["seconds"] for row in rows),
            settings=to_dict(settings.training),
            sections=self._photos(history),
        )
        self.folder.write("report.html", render_page(page))
        try:
            self.folder.write("curves.png", curves_png(by_epoch, title=title))
        except ValueError as error:  # matplotlib is missing; the page shows the same curves
            if not self._has_complained:
                print(f"curves.png was not written: {error}", file=sys.stderr, flush=True)
            self._has_complained = True

    def _photos(self, history: Sequence[Row]) -> list[Section]:
        """Return a few dev photos with their captions by epoch, if the photos are available."""
        dev = self.prepared.dev
        shown = shown_images(len(dev.paths))
        if self._thumbnails is None:
            self._thumbnails = {i: data for i in shown if (data := _thumbnail(dev.paths[i])) is not None}
        cards = []
        for number, image in enumerate(shown):
            captions = [(row["epoch"], row[CAPTIONS][number]) for row in history if CAPTIONS in row]
            if image in self._thumbnails and captions:
                cards.append(
                    Card(
                        path=dev.names[image],
                        thumbnail_jpeg=self._thumbnails[image],
                        caption=captions[-1][1],
                        notes=[(f"epoch {epoch}", text) for epoch, text in _changes(captions)],
                    )
                )
        text = "Captions by epoch; an epoch with the same caption as the one before is omitted."
        return [Section(title="Dev photos", text=text, cards=cards)] if cards else []


def metrics_only(history: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the numeric values of the rows."""
    return [{name: value for name, value in row.items() if name not in (CAPTIONS, SCORE)} for row in history]


def metrics_csv(rows: Sequence[Row]) -> bytes:
    """Return the metrics as CSV, one line per epoch."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.StringIO()
    writer = csv.DictWriter(sink, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def tensorboard_events(row: Row) -> bytes:
    """Return a TensorBoard event file with the metrics of one epoch."""
    from tensorboardX import SummaryWriter  # installed together with Ray Train

    with tempfile.TemporaryDirectory() as directory:
        with SummaryWriter(directory) as writer:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    writer.add_scalar(name, value, row["step"])
        (file,) = Path(directory).iterdir()
        return file.read_bytes()


def _changes(captions: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    return [pair for i, pair in enumerate(captions) if i == 0 or captions[i - 1][1] != pair[1]]


def _thumbnail(path: str) -> bytes | None:
    """Return a thumbnail of the photo; None if it is not available, as when only features exist."""
    if is_local(path) and not Path(path).is_file():
        return None
    try:
        return thumbnail_jpeg(decode_image(read_bytes(path), target_side=_SIDE).image)
    except (InputFault, ImageDecodeError, OSError):
        return None
