"""The table of encoders: what it refuses, and that it loads no library that is not asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from captionlib.config import EncoderConfig
from captionlib.encoders import ENCODER_KINDS, build_encoder, describe_encoder


def test_kinds() -> None:
    assert list(ENCODER_KINDS) == ["efficientnet_lite", "torchvision", "timm"]


def test_an_unknown_kind() -> None:
    with pytest.raises(
        ValueError, match="unknown kind of encoder 'keras'; known: efficientnet_lite, torchvision, timm"
    ):
        describe_encoder("keras", "resnet50")


def test_vectors_have_no_network() -> None:
    with pytest.raises(ValueError, match="given ready-made, and no network here makes them of images"):
        build_encoder(EncoderConfig(kind="vectors"))


def test_another_size() -> None:
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", size=96)
    assert config.preprocessing.size == 96
    assert config.num_positions == 9


@pytest.mark.parametrize("size", [-1, 0, 31])
def test_a_size_that_is_too_small(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 32 x 32 pixels, got size {size}"):
        describe_encoder("efficientnet_lite", "efficientnet_lite0", size=size)


def test_a_built_encoder_is_in_evaluation_mode() -> None:
    encoder = build_encoder(describe_encoder("efficientnet_lite", "efficientnet_lite0", size=32))
    assert not any(module.training for module in encoder.modules())
    assert encoder.config.preprocessing.size == 32


def test_libraries_are_loaded_on_use() -> None:
    code = "import sys, captionlib.encoders; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
