"""Folders import downwards only, each those that stand before it in its list, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = (
    "version", "errors", "ranges", "masking", "storage", "config", "text", "vocabulary", "devices", "cache", "images",
    "datasets", "metrics", "report", "features", "encoders", "decoders", "word_detector", "search", "confidence",
    "checkpoints", "engines", "captioners", "training",
)  # fmt: skip
JOBS = ("cli", "inputs", "outputs", "cluster", "batch", "merging", "training", "evaluation", "benchmarking")
COMMANDS = {
    "__main__",
    "caption",
    "train",
    "extract_features",
    "evaluate",
    "benchmark",
    "quantize",
    "train_detector",
    "calibrate",
    "merge",
}


def modules(package: str) -> dict[str, Path]:
    """By dotted name."""
    files = (ROOT / package).rglob("*.py")
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (found for name in names if (found := name if name in known else node.module) in known)


@pytest.mark.parametrize(("package", "order"), [("captionlib", LIBRARY), ("jobs", JOBS)])
def test_folders_import_downwards(package: str, order: tuple[str, ...]) -> None:
    known = modules(package)
    arrows = [(name, target) for name, file in known.items() for target in imports(file, known)]
    assert len(arrows) > 100
    floor = {name: i for i, name in enumerate(order)}
    for name, target in arrows:
        here, there = (module.split(".")[1] if "." in module else "" for module in (name, target))
        if here == "" or here in COMMANDS:
            assert here != there
            continue  # commands and the package itself stand above all folders
        assert here in floor, f"{name} is in no folder of the list"
        assert there in floor, f"{name} imports {target}, which stands above all folders"
        assert floor[there] <= floor[here], f"{name} imports {target}, which stands above it"


@pytest.mark.parametrize("package", ["captionlib", "jobs"])
def test_nothing_imports_in_a_circle(package: str) -> None:
    known = modules(package)
    graph = {name: set(imports(file, known)) - {name} for name, file in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_the_top_of_jobs_holds_commands_only() -> None:
    files = {path.name for path in (ROOT / "jobs").iterdir() if path.is_file()}
    assert files == {"__init__.py", "README.md", *(f"{name}.py" for name in COMMANDS)}
    assert {path.name for path in (ROOT / "jobs").iterdir() if path.is_dir()} - {"__pycache__"} == set(JOBS)


@pytest.mark.parametrize("package", ["captionlib", "jobs"])
def test_the_map_names_every_place(package: str) -> None:
    page = (ROOT / package / "README.md").read_text()
    for path in (ROOT / package).iterdir():
        if path.name.startswith("__") or path.name in ("README.md", "version.py", "py.typed"):
            continue
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in page, path
