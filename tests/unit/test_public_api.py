"""What `captionlib` offers, and that it can be had without Ray and without waiting for PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import captionlib

LIBRARY = Path(captionlib.__file__).parent


def test_the_public_names() -> None:
    assert captionlib.__all__ == ["Caption", "Predictor", "SearchConfig", "read_dataset", "score_captions"]
    for name in captionlib.__all__:
        assert getattr(captionlib, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        captionlib.nothing_of_the_kind  # noqa: B018


def test_the_library_never_imports_ray() -> None:
    files = sorted(LIBRARY.rglob("*.py"))
    assert len(files) > 30
    for file in files:
        lines = file.read_text().splitlines()
        assert not [line for line in lines if line.strip().startswith(("import ray", "from ray"))], file


@pytest.mark.parametrize(
    "module",
    ["captionlib", "captionlib.config", "captionlib.datasets", "captionlib.metrics", "captionlib.images"],
)
def test_light_modules_load_no_heavy_ones(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'torchvision', 'timm', 'ray') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
