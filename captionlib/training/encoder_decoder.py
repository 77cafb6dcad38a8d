"""Encoder and decoder as one decoder whose features are pixels, so that both are trained by the same code.

Shapes: as in `captionlib.decoders.base`; S side of the square input of the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

from captionlib.decoders import Decoder, DecoderOutput, Memory, State
from captionlib.encoders.base import Encoder
from captionlib.images.pixels import normalize
from captionlib.training.objects import ObjectsHead


class EncoderDecoder(Decoder):
    """A decoder whose `features` are pixels, uint8 (B, S, S, 3), as made by `to_pixels`.

    The encoder stays in evaluation mode, so that batch norm keeps its statistics, any number of workers learns the
    same, and captioning computes the same as training. The stages that `Encoder.freeze_before` left unfrozen are
    trained.

    Args:
        encoder: normalised images (B, 3, S, S) → features (B, N, D).
        decoder: decoder of any kind.
        objects: predicts objects from the features, only in training.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, objects: ObjectsHead | None = None) -> None:
        super().__init__()
        # Pixels are in this memory format, and convolutions are 1.5 times as fast with it on a CPU.
        self.encoder, self.decoder = encoder.to(memory_format=torch.channels_last), decoder
        self.objects = objects
        self.max_tokens = decoder.max_tokens
        self._is_frozen = not any(parameter.requires_grad for parameter in encoder.parameters())
        self._last: tuple[Tensor, Tensor] | None = None
        self.train(self.training)

    def train(self, mode: bool = True) -> EncoderDecoder:
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels uint8 (B, S, S, 3) → features (B, N, D)."""
        if not self._is_frozen:
            return self._features(pixels)
        # Self-critical training shows the same pixels twice: to draw captions, and to learn from them. The first time
        # is in inference mode, whose tensors cannot be used in autograd.
        if self._last is None or self._last[0] is not pixels:
            with torch.inference_mode(False), torch.no_grad():
                self._last = pixels, self._features(pixels)
        return self._last[1]

    def _features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.encoder(normalize(pixels, self.encoder.config.preprocessing))
        return features

    def forward(self, features: Tensor, tokens: Tensor, teacher_forcing: float = 1.0) -> DecoderOutput:
        features = self.encode(features)
        output: DecoderOutput = self.decoder(features, tokens, teacher_forcing)
        if self.objects is None or not self.training:
            return output
        return output._replace(objects=self.objects(features))

    def memory(self, features: Tensor) -> Memory:
        return self.decoder.memory(self.encode(features))

    def start(self, memory: Memory) -> State:
        return self.decoder.start(memory)

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        return self.decoder.step(tokens, state, memory)
