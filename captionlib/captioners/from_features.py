"""A captioner as one module: an encoder, a decoder and perhaps a word detector → captions as word ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captionlib.config import SearchConfig
from captionlib.decoders.base import Decoder
from captionlib.search import Hypothesis, search
from captionlib.search.rerank import rerank
from captionlib.word_detector import DetectedWords, WordDetector


class Captioner(nn.Module):
    """An encoder, a decoder and a word detector.

    Args:
        encoder: normalised images (B, 3, H, W) → features (B, N, D); None for ready-made features.
        decoder: decoder of any kind.
        detector: word detector for the same features and vocabulary; None if there is none.
    """

    def __init__(self, encoder: nn.Module | None, decoder: Decoder, detector: WordDetector | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.detector = detector

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Encode normalised images (B, 3, H, W) → features (B, N, D).

        Raises:
            ValueError: there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("this captioner was trained on ready-made features and has no encoder for images")
        return self.encoder(images)

    def detect(self, features: Tensor) -> list[DetectedWords] | None:
        """Detect the words of images with features (B, N, D); None without a word detector."""
        return None if self.detector is None else self.detector.detect(features)

    @torch.inference_mode()
    def caption_features(
        self,
        features: Tensor,
        config: SearchConfig,
        image_ids: Sequence[int] | None = None,
        *,
        keep_attention: bool = False,
        keep_steps: bool = False,
        detected: Sequence[DetectedWords] | None = None,
    ) -> list[list[Hypothesis]]:
        """Caption features (B, N, D); return the captions of each image, best first. Use it in evaluation mode.

        Args:
            detected: result of `detect` if it is known already.

        Raises:
            UserError: the search re-ranks by a word detector, and there is none.
            ValueError: the search allows longer captions than the decoder can represent.
        """
        limit = self.decoder.max_tokens
        if limit is not None and config.max_tokens + 1 > limit:
            raise ValueError(
                f"search.max_tokens {config.max_tokens} exceeds the {limit - 1} words that this decoder can represent "
                f"(decoder.max_tokens {limit}, <eos> included)"
            )
        config.check_detector(exists=self.detector is not None)
        memory = self.decoder.memory(features)
        start = self.decoder.start(memory)
        found = search(
            self.decoder.step,
            start,
            memory,
            # The word detector chooses among the whole beam.
            dataclasses.replace(config, num_captions=config.beam_width) if config.reranks else config,
            image_ids,
            keep_attention=keep_attention,
            keep_steps=keep_steps,
        )
        if not config.reranks:
            return found
        words = detected or self.detect(features) or []
        return [
            rerank(of_image, opinion.log_probability, config) for of_image, opinion in zip(found, words, strict=True)
        ]
