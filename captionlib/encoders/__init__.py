"""Encoders: normalised images (B, 3, H, W) → features (B, N, D), whatever the network behind them."""

from captionlib.encoders.base import Encoder
from captionlib.encoders.zoo import ENCODER_KINDS, build_encoder, describe_encoder, resized

__all__ = ["ENCODER_KINDS", "Encoder", "build_encoder", "describe_encoder", "resized"]
