"""The base of all families: the usual way to load a model, prompt it and read its output.

Shapes: B images, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


class Family:
    """Encoder-decoder captioners with a processor: images, and optionally the beginning of a text → tokens."""

    noun = "a captioner"
    """Name for messages, such as `BLIP`."""
    default_prompt: str | None = None
    takes_prompt = True
    takes_system_prompt = False
    max_tokens = 50
    """Longest caption, if the model does not state it."""
    cpu_batch_size = 8
    gpu_batch_size = 64

    def load_model(self, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """Load the model; return it and transformers' report on missing and unexpected weights.

        Args:
            settings: arguments of `from_pretrained`.
        """
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **settings)

    def load_processor(self, folder: Path, **settings: Any) -> Any:
        """Load the processor, which has `image_processor` and `tokenizer`."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, **settings)

    def check_prompt(self, prompt: str | None) -> None:
        """Reject a prompt that the model does not support. Raises UserError."""

    def encode(
        self, processor: Any, images: Sequence[Image], prompt: str | None, system_prompt: str | None
    ) -> dict[str, Tensor]:
        """Build the inputs of `generate`: pixel values, and the tokens (B, L) of one prompt for all images."""
        texts = {} if prompt is None else {"text": [prompt] * len(images)}
        return dict(processor(images=list(images), **texts, return_tensors="pt"))

    def end_tokens(self, model: Any) -> set[int]:
        """Return the ids of the tokens that end a caption."""
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = getattr(model.config, "eos_token_id", None)
        return set(ends) if isinstance(ends, (list, tuple)) else set() if ends is None else {ends}

    def read(self, processor: Any, tokens: Sequence[int]) -> str:
        """Decode new tokens to text without the prompt, special tokens and tags."""
        text: str = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return text
