"""The flags `--encoder.…`, which name an encoder in all commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from captionlib.config import EncoderConfig
from captionlib.errors import UserError

DEFAULT_NAME = "efficientnet_lite0"


def _hint(metavar: str, default: str) -> Any:
    """Describe a flag that has no plain default."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The network that turns images into features."""

    kind: Literal["efficientnet_lite", "torchvision", "timm"] = "efficientnet_lite"
    """Library of the network."""
    name: Annotated[str | None, _hint("NAME", f"{DEFAULT_NAME}, or that of the checkpoint")] = None
    """Name of the network in its library."""
    features: Literal["grid", "pooled", "logits"] = "grid"
    """Output of the network that is used: positions of the last stage (grid), their mean (pooled), or the classifier's
logits."""
    checkpoint: Annotated[str | None, _hint("DIR", "the library's ImageNet weights")] = None
    """Checkpoint (folder or URL) of a captioner whose encoder is used."""
    size: Annotated[int | None, _hint("INT", "the size that the weights were trained with")] = None
    """Side of the square in pixels that images are scaled to. A larger size shows smaller objects, and the time of the
encoder grows with its square."""

    def describe(self) -> EncoderConfig:
        """Return the complete configuration of a network of a library.

        Raises:
            UserError, ModuleNotFoundError: the network is not available; the message states what to do.
        """
        from captionlib.encoders import describe_encoder

        return describe_encoder(self.kind, self.name or DEFAULT_NAME, self.features, self.size)

    def describe_stored(self, stored: EncoderConfig, where: str) -> EncoderConfig:
        """Return the configuration of a checkpoint's encoder, for images of the size that was asked for.

        Args:
            stored: configuration in the checkpoint.
            where: the checkpoint, for messages.

        Raises:
            UserError: the checkpoint has no encoder, or not the one that was asked for.
        """
        from captionlib.encoders import resized

        if stored.kind == "vectors":
            raise UserError(f"{where} was trained on ready-made features and has no encoder for images")
        if self.name is not None and self.name != stored.name:
            raise UserError(f"{where} has the encoder {stored.name}, and {self.name} was asked for")
        return stored if self.size is None else resized(stored, self.size)
