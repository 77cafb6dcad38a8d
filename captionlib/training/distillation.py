"""Knowledge distillation: averages the teachers' next-word distributions, which the student is trained to match.

Hinton, Vinyals & Dean 2015, section 2; word level: Kim & Rush 2016, section 3.1.

Shapes: as in `captionlib.decoders.base`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captionlib.decoders import Decoder


class Teachers:
    """Decoders whose probabilities are averaged. They share the student's vocabulary and inputs.

    Args:
        decoders: at least one, of any kind.
    """

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        if not decoders:
            raise ValueError("there is no teacher: name at least one")
        self.decoders = [decoder.eval().requires_grad_(False) for decoder in decoders]

    def to(self, device: torch.device) -> Teachers:
        """Move the teachers to a device."""
        self.decoders = [decoder.to(device) for decoder in self.decoders]
        return self

    @torch.no_grad()
    def probabilities(self, features: Tensor, tokens: Tensor, captions: Tensor) -> Tensor:
        """Compute the averaged probabilities of the words of given captions: (M, V), in the order of the student's
        output.

        Args:
            features: (B, N, D).
            tokens: (B, K, T).
            captions: `DecoderOutput.captions` (M,) of the student.
        """
        mean = torch.zeros(())
        for decoder in self.decoders:
            output = decoder(features, tokens)
            probabilities = output.logits.float().softmax(dim=-1)
            # Decoders return words in different orders, but in each the words of one caption are in sequence.
            mean = mean.to(probabilities) + probabilities[output.captions.argsort(stable=True)] / len(self.decoders)
        places = captions.argsort(stable=True)
        return torch.empty_like(mean).index_copy_(0, places, mean)
