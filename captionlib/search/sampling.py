"""Sampling: draws words from the distribution; samples of an image do not depend on its batch.

Shapes: as in `captionlib.search`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.devices import to_device
from captionlib.search.rows import Rows
from captionlib.vocabulary import PAD


class Sampling:
    """Draws independent captions by inverting the cumulative distribution.

    Each image has its own stream of uniform numbers, from a counter-based generator keyed by seed and image (Philox:
    Salmon et al. 2011), and words are ordered by id. Results therefore do not depend on the batch, and rarely on
    rounding.
    """

    def __init__(self, config: SearchConfig, image_ids: Sequence[int], device: torch.device) -> None:
        self.config = config
        shape = (config.num_captions, config.max_tokens + 1)
        streams = np.stack([image_stream(config.seed, image_id).random(shape) for image_id in image_ids])
        self.uniform = to_device(torch.from_numpy(streams), device)  # (images, K, max_tokens + 1) float64 in [0, 1)

    def choose(self, log_probs: Tensor, rows: Rows, position: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Log-probabilities (B, 1 or K, V) → parents, words and log-probabilities of the new rows, each (B, K)."""
        chances = truncate(log_probs / self.config.temperature, self.config.top_k, self.config.top_p)
        cumulative = chances.cumsum(dim=-1, dtype=torch.float64)
        uniform = self.uniform[rows.images, :, position]  # (B, K)
        # Before the first word an image has one row, from which all of its K samples are drawn.
        threshold = uniform.unflatten(1, (rows.width, -1)) * cumulative[..., -1:]  # (B, rows, K / rows)
        word = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=log_probs.shape[-1] - 1)
        gained = log_probs.gather(-1, word).flatten(1)  # (B, K)
        best = log_probs.amax(dim=-1)  # (B, 1 or K); NaN marks a model that gave no answer
        gained = torch.where(best > -torch.inf, gained, best.nan_to_num(neginf=0.0, nan=torch.nan))
        over = rows.ended | ~(best > -torch.inf)
        word = word.flatten(1).masked_fill(over, PAD)
        new = rows.log_probs + gained.masked_fill(rows.ended, 0.0)
        return (torch.zeros_like(word) if rows.width != word.shape[1] else None), word, new

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: all samples are finished."""
        return rows.ended.all(dim=1)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Convert logits (..., V) to probabilities whose tail is 0.

    Args:
        top_k: number of words that are kept (Fan et al. 2018, section 5.2); 0 means all.
        top_p: then keep the fewest words whose total probability reaches this value (nucleus sampling, Holtzman et al.
            2020).
    """
    keep_all = not 0 < top_k < logits.shape[-1]
    if keep_all and top_p >= 1:
        return logits.softmax(dim=-1)
    ordered, words = logits.sort(dim=-1, descending=True) if keep_all else logits.topk(top_k, dim=-1)
    chances = ordered.softmax(dim=-1)
    if top_p < 1:
        # Keep a word if the words before it have not reached top_p, so the first one is always kept.
        chances = chances * (chances.cumsum(dim=-1) - chances < top_p)
    return torch.zeros_like(logits).scatter(-1, words, chances)


def image_stream(seed: int, image_id: int) -> np.random.Generator:
    """Return the random numbers of an image, for any 64-bit seed and id, including negative ones."""
    key = [int(number) & 0xFFFF_FFFF_FFFF_FFFF for number in (seed, image_id)]
    return np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
