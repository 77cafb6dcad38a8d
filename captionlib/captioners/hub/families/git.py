"""GIT (Wang et al. 2022), such as microsoft/git-base-coco. The prompt is the beginning of the caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captionlib.captioners.hub.families.base import Family

if TYPE_CHECKING:
    from PIL.Image import Image


class Git(Family):
    """The decoder continues the prompt, which therefore must not end with a separator."""

    noun = "GIT"

    def encode(
        self, processor: Any, images: Sequence[Image], prompt: str | None, system_prompt: str | None
    ) -> dict[str, Tensor]:
        """Return pixel values and, if there is a prompt, `[CLS]` with the prompt (B, L)."""
        inputs = dict(processor(images=list(images), return_tensors="pt"))
        if prompt is not None:
            tokenizer = processor.tokenizer
            tokens = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]
            inputs["input_ids"] = torch.tensor([tokens] * len(images))  # (B, L)
        return inputs


FAMILY = Git()
