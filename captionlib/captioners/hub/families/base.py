"""What families of models have in common: the usual way to load, to ask and to read, from which each differs a little.

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
    """Encoder-decoder captioners with a processor: images, and perhaps a text to begin with → tokens."""

    noun = "a captioner"
    """Such as `BLIP`, for sentences."""
    default_prompt: str | None = None
    takes_prompt = True
    takes_system_prompt = False
    max_tokens = 50
    """Longest caption, where the model does not say."""
    cpu_batch_size = 8
    gpu_batch_size = 64

    def load_model(self, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
        """The model with its weights, and what transformers says about how these fit.

        Args:
            settings: for `from_pretrained`.
        """
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **settings)

    def load_processor(self, folder: Path, **settings: Any) -> Any:
        """What makes a model's inputs; has `image_processor` and `tokenizer`."""
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder, **settings)

    def check_prompt(self, prompt: str | None) -> None:
        """Refuse a prompt that the model cannot answer. Raises UserError."""

    def encode(
        self, processor: Any, images: Sequence[Image], prompt: str | None, system_prompt: str | None
    ) -> dict[str, Tensor]:
        """Inputs of `generate`: the processor's pixel values, and tokens (B, L) of one prompt for all images."""
        texts = {} if prompt is None else {"text": [prompt] * len(images)}
        return dict(processor(images=list(images), **texts, return_tensors="pt"))

    def end_tokens(self, model: Any) -> set[int]:
        """Ids at which a caption ends."""
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = getattr(model.config, "eos_token_id", None)
        return set(ends) if isinstance(ends, (list, tuple)) else set() if ends is None else {ends}

    def read(self, processor: Any, tokens: Sequence[int]) -> str:
        """Text of new tokens: without the prompt, special tokens and tags."""
        text: str = processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return text
