"""--help, --version and the one command for all jobs, as a person meets them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from captionlib.version import __version__
from jobs.__main__ import COMMANDS, main
from jobs.cli.help_text import tidy_help

WRITTEN = """\
usage: job [-h] [--size {None}|INT] [--fresh | --no-fresh] INPUT

What it does, in one sentence that is much longer than the width of a terminal and has to be wrapped.

    python -m job INPUT

 positional arguments
 ----------------------------------------
  INPUT                  The images.
                         (required)

 options
 ----------------------------------------
  -h, --help             show this help
  --report, --no-report  Write a page.
                         (default: True)
  --fresh, --no-fresh    Start anew. (default:
                         False)
  --size {None}|INT      Side of the square. (default: None)
  --checkpoint-of-a-test DIR
                         Its folder. (default: none)

 group options
 ----------------------------------------
  What belongs together.
  ----------------------------------------
  --group.fast, --group.no-fast
                         Be fast. (default: False)
"""
TIDY = """\
usage: job [-h] [--size INT] [--fresh] INPUT

What it does, in one sentence that is much longer than the width of a terminal and has to be
wrapped.
    python -m job INPUT

positional arguments:
  INPUT                  The images. (required)

options:
  --version              show the version and exit
  -h, --help             show this help
  --report, --no-report  Write a page. (default: on)
  --fresh                Start anew.
  --size INT             Side of the square.
  --checkpoint-of-a-test DIR
                         Its folder. (default: none)

group options:
  What belongs together.
  --group.fast           Be fast.
"""


def test_flags_say_what_they_do_and_take():
    assert tidy_help(WRITTEN) == TIDY


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_holds_no_types(command, capsys, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: captionlib {command} ")
    assert not re.search(r"None|default: (True|False)|[╭│╰]", text)
    for flag in re.findall(r"^  (--\S*no-\S*)", text, re.MULTILINE):
        assert flag == "--search.no-repeat-ngram"  # no flag is shown by its negation alone
    with pytest.raises(SystemExit):
        main([command, "--version"])
    assert capsys.readouterr().out == f"captionlib {command} {__version__}\n"


def test_every_job_is_a_command():
    files = {path.stem.replace("_", "-") for path in (Path(__file__).parents[3] / "jobs").glob("[a-z]*.py")}
    assert set(COMMANDS) == files


def test_one_command(capsys):
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert all(command in capsys.readouterr().out.split() for command in ["caption"])
    assert main(["capton"]) == 2
    assert capsys.readouterr().err == "captionlib: there is no command capton\n"


def test_a_reader_who_goes_away_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.quantize", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0
