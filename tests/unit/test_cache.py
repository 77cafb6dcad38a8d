"""Where the cache lies."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from captionlib.cache import cache_folder


def test_the_variable_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("CAPTIONLIB_CACHE", "~/scratch")
    assert cache_folder("onnx") == Path("/home/ann/scratch/onnx")
    monkeypatch.setenv("CAPTIONLIB_CACHE", "")
    assert cache_folder("onnx") == Path("/home/ann/.cache/captionlib/onnx")


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("CAPTIONLIB_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder("onnx") == Path(tempfile.gettempdir()) / f"captionlib-{os.getuid()}" / "onnx"
