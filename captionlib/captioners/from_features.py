"""A captioner as one module: an encoder and a decoder → captions as word ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captionlib.config import SearchConfig
from captionlib.decoders.base import Decoder
from captionlib.search import Hypothesis, search


class Captioner(nn.Module):
    """An encoder and a decoder.

    Args:
        encoder: normalised images (B, 3, H, W) → features (B, N, D); None for ready-made features.
        decoder: decoder of any kind.
    """

    def __init__(self, encoder: nn.Module | None, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, H, W) → features (B, N, D).

        Raises:
            ValueError: there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("this captioner was trained on ready-made features and has no encoder for images")
        return self.encoder(images)

    @torch.inference_mode()
    def caption_features(
        self,
        features: Tensor,
        config: SearchConfig,
        image_ids: Sequence[int] | None = None,
        *,
        keep_attention: bool = False,
        keep_steps: bool = False,
    ) -> list[list[Hypothesis]]:
        """Caption features (B, N, D); return the captions of each image, best first. Use it in evaluation mode.

        Raises:
            ValueError: the search allows longer captions than the decoder can represent.
        """
        limit = self.decoder.max_tokens
        if limit is not None and config.max_tokens + 1 > limit:
            raise ValueError(
                f"search.max_tokens {config.max_tokens} exceeds the {limit - 1} words that this decoder can represent "
                f"(decoder.max_tokens {limit}, <eos> included)"
            )
        memory = self.decoder.memory(features)
        start = self.decoder.start(memory)
        return search(
            self.decoder.step, start, memory, config, image_ids, keep_attention=keep_attention, keep_steps=keep_steps
        )
