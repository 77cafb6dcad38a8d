"""The commands and programs in the documentation name what exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import exit_codes

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "jobs/README.md", "jobs/cluster/templates/README.md", "captionlib/pretrained/RESULTS.md")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of each block of code in a language."""
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
            yield page, match[1]


def commands() -> list[tuple[str, str, list[str]]]:
    """(page, job, arguments) of each `python -m jobs.…`."""
    found = []
    for page, text in blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            match = re.search(r"python -m jobs\.(\w+) (.*)", line)
            if match is not None and "…" not in match[2]:
                found.append((page, match[1], shlex.split(match[2], comments=True)))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) > 20
    assert {job for _, job, _ in commands()} >= {"caption", "train", "evaluate", "extract_features", "merge"}


@pytest.mark.parametrize(
    ("page", "job", "arguments"), commands(), ids=[f"{job} {' '.join(rest)[:50]}" for _, job, rest in commands()]
)
def test_commands_have_only_flags_that_exist(
    page: str, job: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"jobs.{job}")
    for place in (exit_codes, module):  # some commands import it at their top, others when they are run
        monkeypatch.setattr(place, "run_command", lambda prog, run: 0, raising=False)
    assert module.main(arguments) == 0


@pytest.mark.parametrize(("page", "text"), list(blocks("python")), ids=lambda value: value[:40])
def test_programs_import_what_exists(page: str, text: str) -> None:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), page, "exec"), {})
