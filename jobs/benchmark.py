"""Measure how fast this machine captions your own images, step by step, and predict the duration of a large job.

    python -m jobs.benchmark photos benchmark
    python -m jobs.benchmark s3://bucket/photos benchmark --num-images 10000000 --num-nodes 8 --price-per-hour 0.40

The rates, the bottleneck and the forecast are written to `benchmark/benchmark.json`, and a chart to
`benchmark/benchmark.html`. Run it on one machine of the kind that the job will use.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from captionlib.captioners.options import CaptionerOptions
from captionlib.captioners.options import flag as option_flag
from captionlib.config import CAPTION_BATCH, SearchConfig, to_dict
from captionlib.ranges import NOT_NEGATIVE, at_least, check_ranges
from jobs.batch.settings import default_search_of
from jobs.benchmarking.forecast import Bottleneck, Forecast, Rates, bottleneck, forecast
from jobs.cli.arguments import parse

if TYPE_CHECKING:
    from jobs.benchmarking.measure import InputSample, JobTimes, Loaded
    from jobs.inputs.listing import ImageRef

PROG = "python -m jobs.benchmark"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of the benchmark."""

    input: Positional[str]
    """Images, as for jobs.caption."""
    output: Positional[str]
    """Folder or URL for benchmark.json and benchmark.html."""
    also: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Another input. May be repeated."""
    sample: int = 1_000
    """Number of images to measure with, drawn at random. With a GPU, about ten thousand are needed."""
    num_images: int = 1_000_000
    """Forecast: number of images to caption."""
    num_nodes: int = 1
    """Forecast: number of machines like this one."""
    price_per_hour: float | None = None
    """Forecast: price of one machine per hour, in any currency."""
    model: str = "default"
    """The model, as for jobs.caption."""
    captioner: Annotated[CaptionerOptions, OmitArgPrefixes] = field(default_factory=CaptionerOptions)
    batch_size: int | None = None
    """Number of images per batch of the model. Default: as for jobs.caption."""
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "--",
            sample=at_least(1),
            num_images=at_least(1),
            num_nodes=at_least(1),
            batch_size=at_least(1),
            price_per_hour=NOT_NEGATIVE,
        )


@dataclass(frozen=True)
class Measured:
    """All results of the measurement."""

    found: InputSample
    loaded: Loaded
    rates: Rates
    job: JobTimes
    engine: str

    @property
    def bytes_per_image(self) -> float:
        """Mean size of the image files in bytes."""
        return self.loaded.num_bytes / len(self.found.images)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 measured, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    defaults = {"search": default_search_of(arguments)}
    settings = parse(BenchmarkSettings, arguments, prog=PROG, description=__doc__ or "", defaults=defaults)
    from jobs.cli.exit_codes import run_command

    return run_command(PROG, lambda: benchmark(settings))


def benchmark(settings: BenchmarkSettings) -> int:
    """Measure, print and write the results; return the exit code.

    Raises:
        UserError, OSError: the inputs, the output or the checkpoint cannot be used.
    """
    from captionlib.storage.folder import Folder
    from jobs.cluster.submitted_code import check_paths_outlive_job

    check_paths_outlive_job(settings.input, *settings.also, settings.output)
    output = Folder.of(settings.output)
    output.check_writable()
    measured = measure(settings)
    limit = bottleneck(measured.rates)
    future = forecast(
        measured.rates,
        num_images=settings.num_images,
        num_nodes=settings.num_nodes,
        start_up_seconds=measured.job.start_up_seconds,
        bytes_per_image=measured.bytes_per_image,
        price=settings.price_per_hour,
    )
    _print(measured, limit, future)
    facts = _facts(settings, measured, limit, future)
    output.write("benchmark.json", json.dumps(facts, indent=2, default=str).encode() + b"\n")
    output.write("benchmark.html", _page(settings, measured, limit, future))
    print(f"\n{output.url}/benchmark.html and benchmark.json contain these results")
    return 0


def measure(settings: BenchmarkSettings) -> Measured:
    """Measure each step separately, then all steps in a loop, then the job."""
    import torch

    from captionlib.captioners.zoo import open_captioner
    from jobs.benchmarking import measure as steps
    from jobs.cluster.resources import num_cpus

    _say("listing")
    found = steps.sample_images((settings.input, *settings.also), settings.sample)
    opened = open_captioner(settings.model, settings.search, settings.captioner)
    captioner = opened.load(batch_size=settings.batch_size, num_threads=num_cpus())
    on_gpu = opened.needs.uses_gpu and torch.cuda.is_available()
    batch_size = settings.batch_size or (CAPTION_BATCH.gpu if on_gpu else CAPTION_BATCH.cpu)
    count = len(found.images)
    _say(f"fetching and decoding {count:,} images")
    loaded = steps.load(found.images, opened.transform)
    _say("the model alone")
    encoder, search, engine = math.inf, steps.captioner_seconds(captioner, loaded.pixels), opened.name
    stages = captioner.stages()
    if stages is not None:
        encoder, search = steps.stage_seconds(stages, loaded.pixels, batch_size)
        engine = stages.engine
    del stages  # it refers to the model, whose memory the job needs
    _say("all steps in a bare loop")
    loop = steps.loop_seconds(captioner, found.images, opened.transform, batch_size)
    del captioner  # frees its memory for the job
    _say("the job, with Ray")
    job = _time_job(settings, found.images)
    good = len(loaded.pixels)
    rates = Rates(
        listing=found.num_seen / found.seconds,
        fetch=count / loaded.fetch_seconds,
        decode=count / loaded.decode_seconds,
        encoder=None if math.isinf(encoder) else good / encoder,
        search=good / search,
        loop=count / loop,
        job=job.images_per_second,
        on_gpu=on_gpu,
    )
    return Measured(found, loaded, rates, job, engine)


def _time_job(settings: BenchmarkSettings, images: Sequence[ImageRef]) -> JobTimes:
    from jobs.benchmarking.measure import time_job

    flags = ["--no-report", "--model", settings.model, "--max-error-share", "1", "--address", "local"]
    for name in settings.captioner.given():
        value = getattr(settings.captioner, name)
        for one in value if isinstance(value, tuple) else (value,):
            flags += [option_flag(name)] if one is True else [option_flag(name), str(one)]
    if settings.batch_size is not None:
        flags += ["--batch-size", str(settings.batch_size)]
    unused = settings.search.unused()
    for name, value in to_dict(settings.search).items():
        if name in unused:
            continue  # the job would warn of it
        flag = f"--search.{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags += [flag] if value else []
        else:
            flags += [flag, str(value)]
    with tempfile.TemporaryDirectory() as folder:
        if images[0].shard is not None:
            source = images[0].shard  # the whole shard, because the job cannot read single images of it
        else:
            source = f"{folder}/sample.txt"
            Path(source).write_text("".join(f"{image.path}\n" for image in images), encoding="utf-8")
        return time_job(source, f"{folder}/out", *flags)


def _say(text: str) -> None:
    print(f"measuring: {text}", file=sys.stderr, flush=True)


# --- what is shown ----------------------------------------------------------------------------------------------


def _rows(measured: Measured) -> list[tuple[str, float | None, str]]:
    """Return a table of step, images per second, and a remark."""
    rates, loaded, found = measured.rates, measured.loaded, measured.found
    seen = f"{found.num_seen:,} images" + ("" if found.is_complete else ", not all that there are")
    megabytes = loaded.num_bytes / loaded.fetch_seconds / 1e6
    failed = f", {loaded.num_failed:,} failed" if loaded.num_failed else ""
    job = f"{measured.job.start_up_seconds:.0f} s of start-up before"
    if rates.job is None:
        job = "over too soon to say: take a larger --sample"
    return [
        ("listing", rates.listing, seen),
        ("fetch", rates.fetch, f"{megabytes:,.0f} MB/s, {measured.bytes_per_image / 1e3:,.0f} kB an image"),
        ("decode", rates.decode, f"{len(found.images):,} images{failed}"),
        *(
            [("model", rates.search, measured.engine)]
            if rates.encoder is None
            else [("encoder", rates.encoder, measured.engine), ("search", rates.search, "")]
        ),
        ("bare loop", rates.loop, "all but the listing, in one process"),
        ("job", rates.job, job),
    ]


def _sentences(limit: Bottleneck, future: Forecast) -> tuple[str, str]:
    machines = "1 such machine" if future.num_nodes == 1 else f"{future.num_nodes:,} such machines"
    cost = "" if future.cost is None else f", {future.cost:,.2f} at the price given"
    return (
        f"Held up by {limit.step}: {limit.reason}. What helps: {limit.remedy}.",
        f"{future.num_images:,} images on {machines}: {future.hours:,.2f} hours{cost}, if the storage delivers "
        f"{future.bytes_per_second / 1e6:,.0f} MB/s.",
    )


def _print(measured: Measured, limit: Bottleneck, future: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step")
    table.add_column("images/s", justify="right")
    table.add_column("")
    for step, rate, note in _rows(measured):
        table.add_row(step, "" if rate is None else f"{rate:,.1f}", note)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for sentence in _sentences(limit, future):
        console.print(sentence, markup=False)


def _facts(settings: BenchmarkSettings, measured: Measured, limit: Bottleneck, future: Forecast) -> dict[str, Any]:
    from captionlib.masking import masked
    from jobs.cluster.resources import num_cpus
    from jobs.outputs import run_record

    inputs = [masked(text) for text in (settings.input, *settings.also)]
    return {
        "measured": run_record.now(),
        "machine": {"cpus": num_cpus(), "gpu": measured.rates.on_gpu, "engine": measured.engine},
        "versions": run_record.versions(),
        "settings": to_dict(settings) | {"input": inputs[0], "also": inputs[1:]},
        "sample": {
            "images": len(measured.found.images),
            "failed": measured.loaded.num_failed,
            "bytes_per_image": round(measured.bytes_per_image),
            "seen": measured.found.num_seen,
            "all_seen": measured.found.is_complete,
        },
        "images_per_second": {step: None if rate is None else round(rate, 1) for step, rate, _ in _rows(measured)},
        "job": {"seconds": round(measured.job.seconds, 1), "start_up_seconds": measured.job.start_up_seconds},
        "bottleneck": asdict(limit),
        "forecast": asdict(future),
    }


def _page(settings: BenchmarkSettings, measured: Measured, limit: Bottleneck, future: Forecast) -> bytes:
    from captionlib.report import Page, Section, duration, named_bars, render_page

    rows = _rows(measured)
    held_up, planned = _sentences(limit, future)
    numbers = [("images per second", f"{measured.rates.end_to_end:,.1f}"), ("held up by", limit.step)]
    numbers.append((f"for {future.num_images:,} images", duration(future.hours * 3600)))
    if future.cost is not None:
        numbers.append(("cost", f"{future.cost:,.2f}"))
    # Listing is left out: it is so much faster that the other bars would be invisible beside its bar.
    bars = {step: rate for step, rate, _ in rows if rate is not None and step != "listing"}
    table = [(step, "" if rate is None else round(rate, 1), note) for step, rate, note in rows]
    page = Page(
        title="Benchmark",
        text=f"{held_up} {planned}",
        numbers=numbers,
        sections=[
            Section(
                title="Rates",
                charts=[named_bars("Each step with the machine to itself", bars, unit="images per second")],
            ),
            Section(title="Steps", table_head=("step", "images/s", ""), table=table),
        ],
        settings=to_dict(settings),
    )
    return render_page(page)


if __name__ == "__main__":
    sys.exit(main())
