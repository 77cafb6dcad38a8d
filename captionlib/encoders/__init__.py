"""Encoders: normalised images (B, 3, H, W) → features (B, N, D), for networks of several libraries."""

from captionlib.encoders.base import Encoder
from captionlib.encoders.zoo import ENCODER_KINDS, build_encoder, describe_encoder, resized

__all__ = ["ENCODER_KINDS", "Encoder", "build_encoder", "describe_encoder", "resized"]
