"""Ray's processes that die: the command ends with a sentence, whatever its main thread waits for."""

from __future__ import annotations

import subprocess
import sys
import threading

from jobs.cluster import head_watch
from jobs.cluster.head_watch import HeadWatch, Watched

PROGRAM = """
import time
from jobs.cli.exit_codes import run_command
from jobs.cluster.head_watch import HeadWatch, Watched

def refuse():
    raise ConnectionRefusedError

def action():
    with HeadWatch([Watched("the raylet", refuse, 0.5)]):
        time.sleep(600)

run_command("python -m jobs.caption", action)
"""


def test_a_process_that_is_gone_ends_the_command_with_a_sentence():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("python -m jobs.caption: the raylet has not answered for ")
    assert "run the same command again" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_short_silence_and_what_comes_after_the_block_are_nothing(monkeypatch):
    monkeypatch.setattr(head_watch, "SECONDS_BETWEEN_LOOKS", 0.01)
    ends: list[str] = []
    monkeypatch.setattr(head_watch, "end_at_once", ends.append)
    answers = [OSError(), None, OSError(), None] * 3
    looked = threading.Event()

    def connect() -> None:
        if not answers:
            looked.set()
            return
        answer = answers.pop()
        if answer is not None:
            raise answer

    with HeadWatch([Watched("Ray", connect, 30)]):
        assert looked.wait(30)
    assert ends == []
