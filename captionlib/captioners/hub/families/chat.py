"""Chat models with images, such as SmolVLM, Qwen2.5-VL, Qwen3-VL, LLaVA and InternVL, prompted by their chat template.

Shapes: B images, L tokens of the longest prompt; larger images may need more tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captionlib.captioners.hub.families.base import Family
from captionlib.captioners.options import DEFAULT_PROMPT

if TYPE_CHECKING:
    from PIL.Image import Image


class Chat(Family):
    """One turn: an optional system prompt, then the image and the prompt."""

    noun = "a chat model"
    default_prompt = DEFAULT_PROMPT
    takes_system_prompt = True
    max_tokens = 128
    cpu_batch_size = 4
    gpu_batch_size = 16

    def encode(
        self, processor: Any, images: Sequence[Image], prompt: str | None, system_prompt: str | None
    ) -> dict[str, Tensor]:
        """Return the output of the processor, with tokens (B, L) padded on the left, because the answer follows the
        prompt.
        """
        turns: list[dict[str, Any]] = []
        if system_prompt is not None:
            turns.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
        turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]})
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return dict(
            processor(
                images=[[image] for image in images],
                text=[text] * len(images),
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        )


FAMILY = Chat()
