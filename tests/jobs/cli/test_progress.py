from __future__ import annotations

import io
import sys
from functools import partial

import pytest

from jobs.cli import progress, progress_bar
from jobs.cli.progress import Progress, format_seconds
from jobs.cli.progress_bar import ProgressBar


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(progress_bar, "time", made)
    return made


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_on_terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    return made


def test_lines_without_a_terminal(clock, capsys):
    with Progress(1_100, 100, "captioned") as progress:
        clock.now += 30
        progress.add(100, 0)  # the model was loaded meanwhile: no speed yet
        clock.now += 5
        progress.add(99, 1)  # too soon for another line
        clock.now += 5
        progress.add(100, 0)
    assert capsys.readouterr().err.splitlines() == [
        "200 of 1,100 captioned, 0 failed",
        "400 of 1,100 captioned, 20.0 images/s, 1 failed, 35 s left",
    ]
    assert (progress.images, progress.seconds, progress.start_up_seconds) == (300, 40, 30)
    assert progress.images_per_second == 20


def test_nothing_is_claimed_of_a_run_without_a_second_part(clock, capsys):
    with Progress(10, 0, "captioned") as progress:
        clock.now += 3
        progress.add(10, 0)
    assert progress.images_per_second is None
    assert capsys.readouterr().err.splitlines() == ["10 of 10 captioned, 0 failed"]


def test_points_for_a_chart_stay_few(clock):
    progress = Progress(10**6, 0, "captioned")
    for _ in range(5_000):
        clock.now += 1
        progress.add(7, 0)
    assert 50 < len(progress.rates) < 400
    assert {round(rate, 6) for _, rate in progress.rates} == {7.0}


def test_a_bar_in_a_terminal(clock, monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    with Progress(300, 100, "captioned") as progress:
        progress.add(50, 0)
        clock.now += 5
        progress.add(40, 10)
        progress.say("a [note]")
    text = terminal.getvalue()
    for part in ("200/300", "10.0 images/s", "10 failed", "10 s left", "a [note]"):
        assert part in text


def test_the_total_may_be_known_later(clock, monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    bar = ProgressBar("training", text="starting the workers")
    bar.start()
    assert bar.is_live
    assert not bar.show(lambda: "a line", total=40, completed=10, text="loss 2.500", left="3 s left")
    bar.stop()
    text = terminal.getvalue()
    for part in ("training", "starting the workers", "10/40", "loss 2.500", "3 s left"):
        assert part in text
    assert "a line" not in text


def test_lines_are_ten_seconds_apart_and_without_secrets(clock, capsys):
    bar = ProgressBar("training")
    bar.start()
    for number in range(25):
        clock.now += 1
        bar.show(partial(str, f"line {number}"), total=25, completed=number, text="", left="")
    bar.say("read https://user:password@host/photo.jpg")
    assert capsys.readouterr().err.splitlines() == ["line 9", "line 19", "read https://***@host/photo.jpg"]


def test_quiet_displays_nothing(clock, monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    with Progress(300, 0, "captioned", quiet=True) as progress:
        clock.now += 30
        progress.add(100, 0)
        progress.say("a note")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3_599, "59 min 59 s"), (3_725, "1 h 02 min")],
)  # fmt: skip
def test_lengths_of_time(seconds, text):
    assert format_seconds(seconds) == text
