"""Maps this project's search settings to transformers' `generate`, and returns captions with log-probabilities.

Shapes: B images, K captions per image, R = B * K rows (those of an image adjacent), V tokens of the vocabulary, L
tokens so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.search.sampling import image_stream, truncate


@dataclass(frozen=True)
class Generated:
    """One caption returned by `generate`."""

    tokens: list[int]
    """New tokens without the end."""
    log_prob: float
    """Sum of the log-probabilities of these tokens and the end, natural logarithm, under the distribution after the
    rules for repetition and length and before temperature, top-k and top-p."""
    finished: bool
    """Whether the model ended the caption."""


@torch.inference_mode()
def generate(
    model: Any,
    inputs: Mapping[str, Tensor],
    search: SearchConfig,
    image_ids: Sequence[int],
    *,
    end_tokens: set[int],
    repetition_penalty: float | None = None,
) -> list[list[Generated]]:
    """Generate captions for a batch.

    Args:
        model: a model of transformers. Its generation settings apply to everything that is not a setting here.
        inputs: arguments of its `generate` for B images, on its device.
        image_ids: B ids, keys of the random numbers together with `search.seed`. Samples of an image do not depend on
            the batch.

    Returns:
        The captions of each image, best first.
    """
    settings: dict[str, Any] = {
        "max_new_tokens": search.max_tokens,
        "min_new_tokens": search.min_tokens or None,
        "min_length": 0,
        "no_repeat_ngram_size": search.no_repeat_ngram,
        "num_return_sequences": search.num_captions,
        "num_beams": 1,
        "do_sample": False,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "return_dict_in_generate": True,
        "output_scores": False,
    }
    if repetition_penalty is not None:
        settings["repetition_penalty"] = repetition_penalty
    trace = _Trace(keep=search.method != "beam")
    processors: list[Any] = [trace]
    if search.method == "beam":
        settings |= {
            "num_beams": search.beam_width,
            "length_penalty": search.length_penalty,
            "output_scores": True,  # without this, generate does not return log-probabilities of beams
        }
    elif search.method == "sample":
        # _Sampler leaves a single token with a probability above 0, so that transformers can only draw that one.
        settings |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        processors.append(_Sampler(search, image_ids, trace))
    found = model.generate(**inputs, **settings, logits_processor=processors)
    new = found.sequences[:, trace.start :].tolist()
    cut = [_until_end(row, end_tokens) for row in new]
    if search.method == "beam" and search.beam_width > 1:
        lengths = (found.beam_indices >= 0).sum(dim=1)
        log_probs = (found.sequences_scores * lengths**search.length_penalty).tolist()
    else:
        log_probs = trace.log_probs(found.sequences, [len(tokens) + ended for tokens, ended in cut])
    rows = [Generated(tokens, log_prob, ended) for (tokens, ended), log_prob in zip(cut, log_probs, strict=True)]
    width = search.num_captions
    of_images = [rows[start : start + width] for start in range(0, len(rows), width)]
    if search.method == "sample":
        of_images = [sorted(captions, key=lambda caption: -caption.log_prob) for captions in of_images]
    return of_images


def _until_end(tokens: list[int], end_tokens: set[int]) -> tuple[list[int], bool]:
    """Return the tokens before the first end token, and whether there is one."""
    place = next((i for i, token in enumerate(tokens) if token in end_tokens), None)
    return (tokens, False) if place is None else (tokens[:place], True)


class _Trace:
    """Records the scores of each step without changing them: the log-probability of each new token.

    Only the scores of the last step are kept, (R, V), because those of a whole caption need gigabytes with a large
    vocabulary.

    Args:
        keep: whether log-probabilities are needed. In a beam, rows change places, and transformers adds them up itself.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self.start = 0
        self._last: Tensor | None = None  # (R, V)
        self._chosen: list[Tensor] = []  # (R,) each

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Take tokens (R, L) and the scores of the next token (R, V), and return the scores unchanged."""
        if not self.start:
            self.start = tokens.shape[1]
        if self.keep:
            self._take(tokens[:, -1])
            self._last = scores.float().log_softmax(dim=-1)
        return scores

    def log_probs(self, tokens: Tensor, lengths: Sequence[int]) -> list[float]:
        """Return, for rows of finished tokens (R, L), the sums over the first `lengths` new tokens."""
        self._take(tokens[:, -1])
        each = torch.stack(self._chosen, dim=1).tolist()  # (R, new)
        return [sum(row[:length]) for row, length in zip(each, lengths, strict=True)]

    def _take(self, chosen: Tensor) -> None:
        if self._last is not None:
            self._chosen.append(self._last.gather(1, chosen[:, None])[:, 0])
        self._last = None


class _Sampler:
    """Draws the token of each row from the image's own random numbers, as `captionlib.search.sampling` does."""

    def __init__(self, search: SearchConfig, image_ids: Sequence[int], trace: _Trace) -> None:
        self.search, self.trace = search, trace
        shape = (search.num_captions, search.max_tokens)
        streams = np.stack([image_stream(search.seed, image_id).random(shape) for image_id in image_ids])
        self._uniform = torch.from_numpy(streams).flatten(0, 1)  # (R, max_tokens) float64 in [0, 1)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Set the score of the drawn token to 0 and all other scores (R, V) to -inf."""
        search = self.search
        chances = truncate(scores.float() / search.temperature, search.top_k, search.top_p)
        cumulative = chances.cumsum(dim=-1, dtype=torch.float64)
        uniform = self._uniform[:, tokens.shape[1] - self.trace.start].to(scores.device)  # (R,)
        threshold = uniform[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=scores.shape[-1] - 1)  # (R, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
