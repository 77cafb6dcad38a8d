"""Combinations of an image encoder and a text decoder, such as nlpconnect/vit-gpt2-image-captioning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captionlib.captioners.hub.families.base import Family

if TYPE_CHECKING:
    from PIL.Image import Image


class VisionEncoderDecoder(Family):
    """transformers has no processor for these models, and does not list them as models for images and text."""

    noun = "a vision-encoder-decoder model"
    takes_prompt = False

    def load_model(self, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """See `Family`."""
        from transformers import VisionEncoderDecoderModel

        return VisionEncoderDecoderModel.from_pretrained(folder, output_loading_info=True, **settings)

    def load_processor(self, folder: Path, **settings: Any) -> Any:
        """Return the image processor and the tokenizer as one object."""
        from transformers import AutoImageProcessor, AutoTokenizer

        return SimpleNamespace(
            image_processor=AutoImageProcessor.from_pretrained(folder, **settings),
            tokenizer=AutoTokenizer.from_pretrained(folder, **settings),
        )

    def encode(
        self, processor: Any, images: Sequence[Image], prompt: str | None, system_prompt: str | None
    ) -> dict[str, Tensor]:
        """Return pixel values only."""
        return dict(processor.image_processor(list(images), return_tensors="pt"))


FAMILY = VisionEncoderDecoder()
