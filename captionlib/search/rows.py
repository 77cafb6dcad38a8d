"""The rows of a search: hypotheses of all images still searched, and the captions of finished images.

Shapes: as in `captionlib.search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.devices import to_device
from captionlib.vocabulary import BOS, EOS, PAD

T = TypeVar("T", Tensor, float)
State = dict[str, Tensor]
Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Hypothesis:
    """One caption found by the search."""

    tokens: tuple[int, ...]
    """Word ids, without `<bos>` and `<eos>`."""
    log_prob: float
    """Sum of log-probabilities, natural logarithm, including `<eos>` if it was reached."""
    finished: bool
    """Whether `<eos>` was reached; otherwise no allowed word had a positive probability."""
    word_log_probs: tuple[float, ...] = ()
    """Log-probability of each word, `<eos>` included, where `search` was asked for them."""
    entropies: tuple[float, ...] = ()
    """Entropy in nats of the model's distribution from which each of these words was chosen, likewise."""
    attention: Tensor | None = None
    """(L, N) attention weights of each word, if they were requested."""


class Rows:
    """State of the search for each row, kept consistent with the model's state.

    A finished row (after `<eos>`) keeps its place and is continued with `<pad>` at no cost.

    Args:
        start: the model's state before `<bos>`, one row per image.
        memory: dimension 0 of every tensor is the image.
        keep_attention: collect `state["attention"]`.
        keep_steps: collect the log-probability of each word and the entropy of its distribution.
    """

    def __init__(self, start: State, memory: Memory, *, keep_attention: bool = False, keep_steps: bool = False) -> None:
        first = next(iter(start.values()))
        num_images, self.device = first.shape[0], first.device
        self.state, self.memory = start, memory
        self.width = 1  # K is 1 before the first word, because all hypotheses of an image are equal
        self.images = torch.arange(num_images, device=self.device)  # (B,) which images the rows belong to
        self.tokens = torch.full((num_images, 1), BOS, device=self.device)  # (R, 1 + L)
        self.log_probs = torch.zeros(num_images, 1, device=self.device)  # (B, K); -inf where there is none
        self.ended = torch.zeros(num_images, 1, dtype=torch.bool, device=self.device)  # (B, K)
        self.lengths = torch.zeros(num_images, 1, device=self.device)  # (B, K) words, <eos> included
        self.attention = first.new_zeros(num_images, 0, 0) if keep_attention and "attention" in start else None
        self.steps = torch.zeros(num_images, 0, 2, device=self.device) if keep_steps else None
        """(R, L, 2): log-probability and entropy of each word so far; None if they are not collected."""
        self._entropies = torch.zeros(num_images, device=self.device)  # (R,) of the distributions of the next word
        self._places = list(range(num_images))  # copy of `images` on the host
        self._found: dict[int, list[Hypothesis]] = {}

    def scores(self, config: SearchConfig) -> Tensor:
        """Scores (B, K) by which hypotheses are ranked."""
        return rank(self.log_probs, self.lengths.clamp(min=1.0), config)

    def note_entropies(self, log_probs: Tensor) -> None:
        """Keep the entropies of the distributions of the next word: log-probabilities (R, V), before any constraint."""
        if self.steps is not None:
            # A word of probability 0 adds nothing: 0 * -inf would be NaN.
            self._entropies = -(log_probs.exp() * log_probs.clamp(min=-1e4)).sum(dim=-1)

    def advance(self, parent: Tensor | None, word: Tensor, log_probs: Tensor) -> None:
        """Append one word to each row.

        Args:
            parent: (B, K) int64, the row of the image that each new row continues; None: each row continues itself.
            word: (B, K) int64; `<pad>` keeps a row finished.
            log_probs: (B, K), of the whole hypotheses.
        """
        before, entropies = self.log_probs, self._entropies  # (B, K), (R,)
        if parent is not None:
            offsets = torch.arange(len(parent), device=self.device).unsqueeze(1) * self.width
            index = (offsets + parent).flatten()  # (R,)
            self.width = parent.shape[1]
            self.state = _select(self.state, index)
            self.tokens = self.tokens[index]
            self.lengths = self.lengths.gather(1, parent)
            if self.steps is not None:
                self.steps, entropies, before = self.steps[index], entropies[index], before.gather(1, parent)
            if self.attention is not None:
                self.attention = self.attention[index]
        if self.attention is not None:
            latest = self.state["attention"].unsqueeze(1)  # (R, 1, N)
            self.attention = latest if self.attention.shape[1] == 0 else torch.cat([self.attention, latest], dim=1)
        if self.steps is not None:
            latest = torch.stack([(log_probs - before).flatten(), entropies], dim=1)  # (R, 2)
            self.steps = torch.cat([self.steps, latest.unsqueeze(1)], dim=1)
        self.tokens = torch.cat([self.tokens, word.view(-1, 1)], dim=1)
        self.lengths = self.lengths + (word != PAD)
        self.ended = (word == EOS) | (word == PAD)
        self.log_probs = log_probs

    def release(self, done: Tensor, config: SearchConfig) -> bool:
        """Store the captions of finished images, (B,) bool, and remove these images; return whether any image
        remains.
        """
        # This is the only place in a search where the host waits for the device.
        newly = [b for b, is_done in enumerate(done.tolist()) if is_done and self._places[b] not in self._found]
        if not newly:
            return True
        self._collect(newly, config)
        kept = [b for b, image in enumerate(self._places) if image not in self._found]
        # Shrinking the batch copies every tensor, so it waits until a quarter of the images is finished. Until then,
        # the rows of finished images are computed and ignored.
        if kept and 4 * len(kept) <= 3 * len(self._places):
            self._keep(kept)
        return bool(kept)

    def captions(self) -> list[list[Hypothesis]]:
        """Return the captions in the order of the given images."""
        return [self._found[image] for image in sorted(self._found)]

    def _keep(self, places: list[int]) -> None:
        images = to_device(torch.tensor(places), self.device)
        rows = (images.unsqueeze(1) * self.width + torch.arange(self.width, device=self.device)).flatten()
        self._places = [self._places[b] for b in places]
        self.images, self.log_probs = self.images[images], self.log_probs[images]
        self.ended, self.lengths = self.ended[images], self.lengths[images]
        self.tokens, self.state, self.memory = (
            self.tokens[rows],
            _select(self.state, rows),
            _select(self.memory, images),
        )
        if self.attention is not None:
            self.attention = self.attention[rows]
        if self.steps is not None:
            self.steps = self.steps[rows]

    def _collect(self, places: list[int], config: SearchConfig) -> None:
        """Write down the captions of the images at these places, best first."""
        at = to_device(torch.tensor(places), self.device)
        log_probs = self.log_probs[at]  # (b, K)
        exists = self.ended[at] & (log_probs > -torch.inf)
        order = self.scores(config)[at].masked_fill(~exists, -torch.inf).argsort(dim=1, descending=True, stable=True)
        tokens = self.tokens[:, 1:].unflatten(0, (-1, self.width))[at]  # (b, K, L)
        columns = (order.tolist(), exists.tolist(), log_probs.tolist(), tokens.tolist())
        for place, ranking, is_there, of_image, words in zip(places, *columns, strict=True):
            found: dict[object, Hypothesis] = {}
            for k in [k for k in ranking if is_there[k]] or ranking[:1]:
                ending = next((i for i, word in enumerate(words[k]) if word in (EOS, PAD)), len(words[k]))
                caption = tuple(words[k][:ending])
                weights = None
                if self.attention is not None:
                    weights = self.attention[place * self.width + k, :ending].clone()
                log_probs_of_words, entropies = (), ()
                if self.steps is not None:
                    num_steps = ending + (EOS in words[k])
                    steps = self.steps[place * self.width + k, :num_steps].T.tolist()
                    log_probs_of_words, entropies = tuple(steps[0]), tuple(steps[1])
                key = k if config.method == "sample" else caption
                found.setdefault(
                    key, Hypothesis(caption, of_image[k], EOS in words[k], log_probs_of_words, entropies, weights)
                )
            self._found[self._places[place]] = list(found.values())[: config.num_captions]


def rank(log_probs: T, lengths: Tensor | float, config: SearchConfig) -> T:
    """Compute the score of hypotheses: log-probability / length ** length_penalty (Wu et al. 2016, section 7, with the
    length instead of (5 + length) / 6)."""
    return log_probs / lengths**config.length_penalty if config.length_penalty else log_probs  # type: ignore[return-value]


def _select(tensors: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in tensors.items()}
