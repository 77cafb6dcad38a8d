"""The table of captionlib/pretrained/RESULTS.md: the captioners of the classical line, trained and scored on Flickr8k.

    python -m jobs.extract_features flickr8k/Images features --flip
    python tests/benchmarks/classical_line.py flickr8k features runs               all rows: three hours on one core
    python tests/benchmarks/classical_line.py flickr8k features runs --rows dot general
    python tests/benchmarks/classical_line.py flickr8k features runs --print       table and commands of what is there

A row is a run of `jobs.train`, or captions of the dev images by `jobs.caption` that `jobs.evaluate` scores. What is
finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionlib.metrics import LABELS, PYTHON_METRICS

METRICS = tuple(name for metric in PYTHON_METRICS for name in metric.labels)
WIDTH = 256
COMMON = (
    *(
        "--decoder.projection-dim",
        str(WIDTH),
        "--decoder.hidden-dim",
        str(WIDTH),
        "--decoder.attention-dim",
        str(WIDTH),
    ),
    *("--training.epochs", "3", "--training.min-count", "5", "--training.ema-decay", "0.999", "--cpus-per-worker", "1"),
)
LATER = ("--training.optimizer.learning-rate", "1e-4", "--training.epochs", "1")
"""For rows that go on from the additive row's best epoch."""


@dataclass(frozen=True)
class Row:
    """A captioner and how it learns, or how it is searched."""

    title: str
    flags: tuple[str, ...] = ()
    """Of jobs.train, beside `COMMON`."""
    search: tuple[tuple[str, ...], ...] = ()
    """Of jobs.caption, for a row that searches the additive row's model; the mean of several runs."""
    start: str | None = None
    """The row that it goes on from."""


def attention(kind: str) -> tuple[str, ...]:
    return ("--decoder.attention", kind)


def optimizer(kind: str, learning_rate: float) -> tuple[str, ...]:
    return ("--training.optimizer.kind", kind, "--training.optimizer.learning-rate", str(learning_rate))


def beam(width: int) -> tuple[tuple[str, ...], ...]:
    return (("--search.method", "beam", "--search.beam-width", str(width)),)


ROWS: dict[str, Row] = {
    "additive": Row("LSTM, additive attention (Xu et al. 2015)"),
    "show_and_tell": Row(
        "LSTM started from the image (Vinyals et al. 2015)",
        # It sees the image once, and with the others' settings it has hardly begun to learn after three epochs.
        ("--decoder.kind", "lstm_init", "--decoder.dropout", "0.3", *optimizer("adam", 3e-3)),
    ),
    "dot": Row("LSTM, dot attention", attention("dot")),
    "general": Row("LSTM, general attention (Luong et al. 2015)", attention("general")),
    "multi_head": Row("LSTM, multi-head attention, 8 heads", attention("multi_head")),
    "adaptive": Row("LSTM, adaptive attention with a sentinel (Lu et al. 2017)", ("--decoder.kind", "lstm_adaptive")),
    "transformer": Row(
        "transformer, 2 layers, 8 heads",
        # Dropout acts in each of its layers, and would leave little of what it learns.
        (
            *("--decoder.kind", "transformer", "--decoder.dropout", "0.1"),
            *(*optimizer("adam", 1e-3), "--training.optimizer.warmup-steps", "100"),
        ),
    ),
    "schedule": Row(
        "additive, teacher forcing falling from 1 to 0.75 (linear; Bengio et al. 2015)",
        ("--training.teacher-forcing.schedule", "linear"),
    ),
    "random": Row("additive, one caption of five at random in a step", ("--training.captions", "random")),
    "sgd": Row("additive, SGD with momentum 0.9", optimizer("sgd", 0.3)),
    "rmsprop": Row("additive, RMSProp", optimizer("rmsprop", 3e-4)),
    "cross_entropy": Row("additive, then 1 epoch more of cross-entropy", LATER, start="additive"),
    "self_critical": Row(
        "additive, then 1 epoch self-critical (Rennie et al. 2017), mixed with cross-entropy",
        (*LATER, "--training.self-critical.weight", "0.8"),
        start="additive",
    ),
    "greedy": Row("additive, greedy search", search=(("--search.method", "greedy"),)),
    "sample": Row(
        "additive, samples (mean of 5)",
        search=tuple(("--search.method", "sample", "--search.seed", str(seed)) for seed in range(5)),
    ),
    "beam_3": Row("additive, beam 3", search=beam(3)),
    "beam_5": Row("additive, beam 5", search=beam(5)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="Flickr8k's folder")
    parser.add_argument("features", type=Path, help="what jobs.extract_features --flip made of its images")
    parser.add_argument("runs", type=Path, help="folder for the runs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--print", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    table = Table(arguments.dataset, arguments.features, arguments.runs)
    if not arguments.print:
        for name in arguments.rows:
            table.make(name)
    print("\n".join(table.lines()))


@dataclass(frozen=True)
class Table:
    """Where the runs are, and what they read."""

    dataset: Path
    features: Path
    runs: Path

    def make(self, name: str) -> None:
        """Run what a row needs; a finished run says that there is nothing to do."""
        row = ROWS[name]
        if row.search:
            self._dev_images()
        for command in self.commands(name):
            print(f"$ python -m {shlex.join(command)}", flush=True)
            subprocess.run([sys.executable, "-m", *command], check=True)

    def commands(self, name: str) -> list[list[str]]:
        """A row's modules and their arguments."""
        row, made = ROWS[name], []
        if not row.search:
            data = ["--also-features", str(self.features / "features_flipped"), "--data.root", str(self.dataset)]
            start = ["--start-from", str(self.runs / row.start / "best")] if row.start else []
            flags = {**_pairs(COMMON), **_pairs(row.flags)}
            run = [str(self.features), str(self.runs / name)]
            return [["jobs.train", *run, *data, *start, *(part for pair in flags.items() for part in pair)]]
        for number, search in enumerate(row.search):
            output = str(self._captions(name, number))
            model = ["--model", str(self.runs / "additive" / "best")]
            made.append(["jobs.caption", str(self.runs / "dev"), output, *model, *search, "--no-report"])
            made.append(["jobs.evaluate", output, str(self.dataset), "--split", "dev", "--no-java", "--no-report"])
        return made

    def lines(self) -> Iterator[str]:
        """The table of the rows that are there, in Markdown."""
        yield "| captioner | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-L | CIDEr-D | best epoch | minutes |"
        yield "| --- | " + "--- | " * 7 + "--- |"
        made = []
        for name, row in ROWS.items():
            found = self._scores(name)
            if found:
                made.append(name)
                cells = [LABELS[metric].short(found[metric]) for metric in METRICS]
                cells += [str(found.get("epoch", "")), f"{found['minutes']:.0f}" if "minutes" in found else ""]
                yield f"| {row.title} | {' | '.join(cells)} |"
        yield "\n```console"
        for name in made:
            for command in self.commands(name)[:2]:  # samples differ in their seed only
                yield f"$ python -m {shlex.join(command)}"
        yield "```"

    def _scores(self, name: str) -> Mapping[str, Any] | None:
        if not ROWS[name].search:
            file = self.runs / name / "metrics.json"
            if not (self.runs / name / "best" / "config.json").exists():
                return None
            history = json.loads(file.read_text())
            best = max(history, key=lambda epoch: epoch["cider_d"])
            return {**best, "minutes": sum(epoch["seconds"] for epoch in history) / 60}
        files = [self._captions(name, i) for i in range(len(ROWS[name].search))]
        files = [path.with_name(f"{path.name}-scores") / "scores.json" for path in files]
        if not all(file.exists() for file in files):
            return None
        scores = [json.loads(file.read_text())["scores"] for file in files]
        return {metric: statistics.mean(found[metric] for found in scores) for metric in METRICS}

    def _captions(self, name: str, number: int) -> Path:
        return self.runs / "captions" / f"{name}_{number}"

    def _dev_images(self) -> None:
        folder = self.runs / "dev"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (self.dataset / "Flickr_8k.devImages.txt").read_text().split():
            if not (folder / name).exists():
                (folder / name).symlink_to((self.dataset / "Images" / name).resolve())


def _pairs(flags: tuple[str, ...]) -> dict[str, str]:
    """Flags and their values, so that a row's own come in place of the common ones."""
    return dict(zip(flags[::2], flags[1::2], strict=True))


if __name__ == "__main__":
    main()
