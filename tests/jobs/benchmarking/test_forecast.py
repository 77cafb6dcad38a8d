"""The arithmetic of the forecast, by hand."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.benchmarking.forecast import Rates, bottleneck, forecast

RATES = Rates(listing=10_000, fetch=500, decode=400, encoder=100, search=200, loop=50, job=40)


def test_steps_on_cpus_share_the_machine() -> None:
    assert RATES.compute == pytest.approx(1 / (1 / 400 + 1 / 100 + 1 / 200))  # 57.1


def test_a_gpu_works_while_the_cpus_decode() -> None:
    assert dataclasses.replace(RATES, on_gpu=True).compute == pytest.approx(1 / (1 / 100 + 1 / 200))  # 66.7
    assert dataclasses.replace(RATES, on_gpu=True, decode=30).compute == 30


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        ({}, "encoder", "57% of the CPUs' time"),  # 10 ms of 17.5
        ({"search": 50}, "search", "62% of the CPUs' time"),  # 20 ms of 32.5
        ({"decode": 60}, "decode", "53% of the CPUs' time"),  # 16.7 ms of 31.7
        ({"fetch": 20}, "fetch", "20 images/s arrive, 57 could be captioned"),
        ({"job": 10}, "overhead", "the job does 10 images/s where a bare loop does 50"),
        ({"job": None}, "encoder", "57% of the CPUs' time"),
        ({"on_gpu": True}, "encoder", "67% of the GPU's time"),  # 10 ms of 15
        ({"on_gpu": True, "decode": 50}, "decode", "the CPUs decode 50 images/s, and the GPU waits"),
    ],
    ids=["encoder", "search", "decode", "fetch", "overhead", "no job", "GPU", "GPU that waits"],
)
def test_bottleneck(change: dict[str, float | None], step: str, reason: str) -> None:
    found = bottleneck(dataclasses.replace(RATES, **change))  # type: ignore[arg-type]
    assert (found.step, found.reason) == (step, reason)
    assert found.remedy


def test_hours_and_cost() -> None:
    found = forecast(
        RATES, num_images=1_440_000, num_nodes=10, start_up_seconds=216, bytes_per_image=100_000, price=0.5
    )
    # 144 s of listing, 216 s of start-up, and 1,440,000 images at 400 images/s are 3,600 s.
    assert found.hours == pytest.approx(1.1)
    assert found.listing_hours == pytest.approx(0.04)
    assert found.cost == pytest.approx(5.5)
    assert found.bytes_per_second == pytest.approx(40e6)


def test_without_a_price_or_a_rate_of_the_job() -> None:
    rates = dataclasses.replace(RATES, job=None)
    found = forecast(rates, num_images=50 * 3600, num_nodes=1, start_up_seconds=0, bytes_per_image=1)
    assert found.cost is None
    assert found.hours == pytest.approx(1 + 18 / 3600)
