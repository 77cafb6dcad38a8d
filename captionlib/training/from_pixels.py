"""An encoder and a decoder as one decoder that is shown pixels, so that training from images is training.

Shapes: as in `captionlib.decoders.base`; S side of the encoder's square input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captionlib.decoders import Decoder, DecoderOutput, Memory, State
from captionlib.encoders.base import Encoder
from captionlib.transforms import normalize


class FromPixels(Decoder):
    """What is called features elsewhere are pixels here: uint8 (B, S, S, 3), as `to_pixels` makes them.

    The encoder stays in evaluation mode: batch norm keeps its statistics, and so one worker and eight learn the
    same, and captioning computes what training did. What `Encoder.freeze_before` left is trained.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.max_tokens = decoder.max_tokens
        self._is_frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
        self.train(self.training)

    def train(self, mode: bool = True) -> FromPixels:
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (B, S, S, 3) → features (B, N, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._is_frozen):
            return self.encoder(normalize(pixels, self.encoder.config.preprocessing))

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        return self.decoder(self.encode(features), tokens, teacher_forcing)

    def memory(self, features: Tensor) -> Memory:
        return self.decoder.memory(self.encode(features))

    def start(self, memory: Memory) -> State:
        return self.decoder.start(memory)

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        return self.decoder.step(tokens, state, memory)
