"""Computes the bottleneck of a machine, and the duration and cost of a job on several such machines.

The module contains only arithmetic, so that results can be checked by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

_REMEDIES = {
    "fetch": "run nearer to the images, or with a faster network or disk; more machines read more at once",
    "decode": "add CPUs, or store the images smaller",
    "encoder": "a GPU, or a smaller encoder",
    "model": "a GPU, --dtype bfloat16 where the CPU supports it, a smaller model, or shorter captions",
    "search": "a narrower beam (--search.beam-width), or --search.method greedy",
    "overhead": "larger chunks (--images-per-chunk), or fewer other processes on this machine",
}
_MOST_OVERHEAD = 0.3
"""If the job loses more than this share of the bare loop's rate, overhead is the bottleneck rather than a step."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images per second of each step when it has the whole machine."""

    listing: float
    fetch: float
    decode: float
    encoder: float | None
    """None for a model whose two halves cannot be measured separately: `search` is the whole model then."""
    search: float
    loop: float
    """All steps except the listing, in one process."""
    job: float | None
    """The same through `jobs.caption` after start-up; None if the job was too short to measure."""
    on_gpu: bool = False
    """Whether encoder and search run on a GPU, so that decoding does not compete with them."""

    @property
    def compute(self) -> float:
        """Rate of decoding and model together: they share the CPUs, or run in parallel on CPUs and a GPU."""
        model = 1 / ((1 / self.encoder if self.encoder else 0.0) + 1 / self.search)
        return min(self.decode, model) if self.on_gpu else 1 / (1 / self.decode + 1 / model)

    @property
    def end_to_end(self) -> float:
        """The rate to plan with."""
        return self.job if self.job is not None else self.loop


@dataclass(frozen=True)
class Bottleneck:
    """The slowest step."""

    step: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Forecast:
    """Duration and cost of a job on several such machines."""

    num_images: int
    num_nodes: int
    hours: float
    listing_hours: float
    """Hours of these before the first image is captioned."""
    cost: float | None
    """Cost in the currency of the price."""
    bytes_per_second: float
    """Bytes per second that the storage must deliver to all machines together."""


def bottleneck(rates: Rates) -> Bottleneck:
    """Find the step that limits the job, and state what would help."""
    job = rates.job
    if rates.fetch < rates.compute:
        step, reason = "fetch", f"{rates.fetch:,.0f} images/s arrive, {rates.compute:,.0f} could be captioned"
    elif job is not None and job < (1 - _MOST_OVERHEAD) * min(rates.loop, rates.compute):
        step, reason = "overhead", f"the job does {job:,.0f} images/s where a bare loop does {rates.loop:,.0f}"
    elif rates.on_gpu and rates.decode <= rates.compute:
        step, reason = "decode", f"the CPUs decode {rates.decode:,.0f} images/s, and the GPU waits"
    else:
        whole = {"model": 1 / rates.search}
        seconds = {"encoder": 1 / rates.encoder, "search": 1 / rates.search} if rates.encoder else whole
        if not rates.on_gpu:
            seconds["decode"] = 1 / rates.decode
        step = max(seconds, key=seconds.__getitem__)
        whose = "the GPU's" if rates.on_gpu else "the CPUs'"
        reason = f"{seconds[step] / sum(seconds.values()):.0%} of {whose} time"
    return Bottleneck(step, reason, _REMEDIES[step])


def forecast(
    rates: Rates,
    *,
    num_images: int,
    num_nodes: int,
    start_up_seconds: float,
    bytes_per_image: float,
    price: float | None = None,
) -> Forecast:
    """Compute hours and cost of a job: listing and start-up happen once, all other work is divided.

    Args:
        price: price of one machine per hour.
    """
    listing = num_images / rates.listing
    together = rates.end_to_end * num_nodes
    hours = (listing + start_up_seconds + num_images / together) / 3600
    cost = None if price is None else hours * num_nodes * price
    return Forecast(num_images, num_nodes, hours, listing / 3600, cost, together * bytes_per_image)
