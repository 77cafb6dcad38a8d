"""Search: a `step` function over words → the captions that it finds most probable, or draws.

Knows no model. A step is `step(tokens (R,), state, memory) -> (log_probs (R, V), state)`, where `memory` holds
what belongs to an image (dimension 0: image) and `state` what belongs to a beam (dimension 0: row). Rows of
one image stand side by side. An image whose captions are complete leaves the batch, and no image affects
another's captions.

Shapes: B images still searched, K beams (or samples) per image, R = B * K rows, V words, L words so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.vocabulary import BOS, EOS, PAD, UNK

State = dict[str, Tensor]
Memory = dict[str, Tensor]
Step = Callable[[Tensor, State, Memory], tuple[Tensor, State]]


@dataclass(frozen=True)
class Hypothesis:
    """One caption as the search leaves it."""

    tokens: tuple[int, ...]
    """Word ids, without `<bos>` and `<eos>`."""
    log_prob: float
    """Sum of the model's log-probabilities, natural log, `<eos>` included where it was reached."""
    finished: bool
    """Whether `<eos>` was reached within `max_tokens`."""
    attention: Tensor | None = None
    """(L, N) weights of each word, where they were asked for."""


def search(
    step: Step,
    start: State,
    memory: Memory,
    config: SearchConfig,
    image_ids: Sequence[int] | None = None,
    *,
    keep_attention: bool = False,
) -> list[list[Hypothesis]]:
    """Find `config.num_captions` captions per image, best first.

    Args:
        step: see the module's docstring.
        start: the state before `<bos>`, one row per image.
        memory: dimension 0 of every tensor is the image.
        image_ids: what samples are keyed by, with `config.seed`: an image's samples are the same whatever the
            batch. Position in the batch where not given.
        keep_attention: collect `state["attention"]` (R, N) at each word.
    """
    if config.method == "sample":
        num_images = next(iter(start.values())).shape[0]
        ids = range(num_images) if image_ids is None else image_ids
        return _Search(step, start, memory, config, config.num_captions, keep_attention).sample(ids)
    width = config.beam_width if config.method == "beam" else 1
    return _Search(step, start, memory, config, width, keep_attention).beam()


class _Search:
    """The rows of all images still searched, and the captions of those that are not."""

    def __init__(
        self, step: Step, start: State, memory: Memory, config: SearchConfig, width: int, keep_attention: bool
    ) -> None:
        first = next(iter(start.values()))
        self.step_function, self.config, self.width = step, config, width
        self.memory = memory
        self.num_images = first.shape[0]
        self.device = first.device
        self.state = {name: tensor.repeat_interleave(width, dim=0) for name, tensor in start.items()}
        self.images = torch.arange(self.num_images, device=self.device)  # (B,) which images the rows belong to
        rows = self.num_images * width
        self.tokens = torch.full((rows, 1), BOS, device=self.device)  # (R, 1 + L)
        self.log_probs = torch.zeros(self.num_images, width, device=self.device)  # (B, K)
        self.finished = torch.zeros(self.num_images, width, dtype=torch.bool, device=self.device)  # (B, K)
        self.lengths = torch.zeros(self.num_images, width, device=self.device)  # (B, K) words, <eos> included
        self.attention: Tensor | None = None  # (R, L, N)
        self.keep_attention = keep_attention
        self.results: list[list[Hypothesis]] = [[] for _ in range(self.num_images)]

    def beam(self) -> list[list[Hypothesis]]:
        """Beam search; greedy search when the width is 1.

        A finished hypothesis keeps its place in the beam with its score, until better ones push it out. Groups
        (diverse beam search, Vijayakumar et al. 2018, eq. 4) take turns within a step: each pays
        `diversity_strength` per earlier group that chose the same word in this step.
        """
        self.log_probs[:, 1:] = -torch.inf  # all beams are the same at first: only one may branch
        groups = self.config.diversity_groups if self.width > 1 else 1
        per_group = self.width // groups
        self.log_probs[:, ::per_group] = 0.0
        for position in range(self.config.max_tokens + 1):
            next_log_probs = self._next_words(position)  # (B, K, V)
            batch, _, num_words = next_log_probs.shape
            # A finished row has one continuation, <pad> at no cost.
            next_log_probs[self.finished] = -torch.inf
            next_log_probs[..., PAD] = torch.where(self.finished, 0.0, -torch.inf)
            totals = self.log_probs.unsqueeze(-1) + next_log_probs  # (B, K, V)
            lengths = (self.lengths + (~self.finished)).unsqueeze(-1)  # (B, K, 1)
            scores = self._rank(totals, lengths)
            parents, words = [], []
            chosen_before = scores.new_zeros(batch, num_words) if groups > 1 else None
            for group in range(groups):
                rows = slice(group * per_group, (group + 1) * per_group)
                group_scores = scores[:, rows]  # (B, K / groups, V)
                if chosen_before is not None:
                    group_scores = group_scores - self.config.diversity_strength * chosen_before.unsqueeze(1)
                best = group_scores.flatten(1).topk(per_group, dim=1).indices  # (B, K / groups)
                parents.append(best // num_words + rows.start)
                words.append(best % num_words)
                if chosen_before is not None:
                    chosen_before.scatter_add_(1, words[-1], torch.ones_like(chosen_before[:, :per_group]))
                    chosen_before[:, PAD] = 0.0  # finished hypotheses choose nothing
            parent, word = torch.cat(parents, dim=1), torch.cat(words, dim=1)  # (B, K)
            self.log_probs = totals.flatten(1).gather(1, parent * num_words + word)
            self._advance(parent, word)
            if not self._release(last=position == self.config.max_tokens):
                break
        return self.results

    def sample(self, image_ids: Sequence[int]) -> list[list[Hypothesis]]:
        """Independent captions by inverse-CDF sampling, from a stream of numbers that each image has to itself."""
        shape = (self.width, self.config.max_tokens + 1)
        streams = [
            np.random.Generator(np.random.Philox(key=[self.config.seed, int(i)])).random(shape) for i in image_ids
        ]
        uniform = torch.tensor(np.stack(streams), device=self.device)  # (num_images, K, max_tokens + 1) float64
        for position in range(self.config.max_tokens + 1):
            log_probs = self._next_words(position)  # (B, K, V)
            chances = _truncate(log_probs / self.config.temperature, self.config.top_k, self.config.top_p)
            cumulative = chances.double().cumsum(dim=-1)
            threshold = uniform[self.images, :, position].unsqueeze(-1) * cumulative[..., -1:]
            word = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)  # (B, K)
            word = word.clamp(max=log_probs.shape[-1] - 1).masked_fill(self.finished, PAD)
            gained = log_probs.gather(-1, word.unsqueeze(-1)).squeeze(-1)
            self.log_probs = self.log_probs + gained.masked_fill(self.finished, 0.0)
            self._advance(torch.arange(self.width, device=self.device).expand_as(word), word)
            if not self._release(last=position == self.config.max_tokens):
                break
        return self.results

    def _next_words(self, position: int) -> Tensor:
        """One step of the model, and what the settings forbid: log-probabilities (B, K, V)."""
        log_probs, self.state = self.step_function(self.tokens[:, -1], self.state, self.memory)
        log_probs = log_probs.float().clone()
        forbidden = [PAD, BOS] if self.config.allow_unk else [PAD, BOS, UNK]
        if position < self.config.min_tokens:
            forbidden.append(EOS)
        if position == self.config.max_tokens:  # no room for another word: end, at what ending costs
            end = log_probs[:, EOS].clone()
            log_probs.fill_(-torch.inf)
            log_probs[:, EOS] = end
        else:
            log_probs[:, forbidden] = -torch.inf
            if self.config.no_repeat_ngram and position >= self.config.no_repeat_ngram:
                self._forbid_repeats(log_probs)
        return log_probs.unflatten(0, (-1, self.width))

    def _forbid_repeats(self, log_probs: Tensor) -> None:
        """No word that would complete an n-gram which the row already has (Paulus et al. 2018, section 2.5)."""
        order = self.config.no_repeat_ngram
        for row, tokens in enumerate(self.tokens[:, 1:].tolist()):
            prefix = tokens[len(tokens) - order + 1 :]
            seen = [
                tokens[i + order - 1]
                for i in range(len(tokens) - order + 1)
                if tokens[i : i + order - 1] == prefix and tokens[i + order - 1] not in (PAD, EOS)
            ]
            if seen:
                log_probs[row, seen] = -torch.inf

    def _rank(self, totals: Tensor, lengths: Tensor) -> Tensor:
        """What hypotheses compete by: log-probability / length ** length_penalty (Wu et al. 2016, simplified)."""
        return totals / lengths**self.config.length_penalty if self.config.length_penalty else totals

    def _advance(self, parent: Tensor, word: Tensor) -> None:
        """Let row (b, k) continue `parent[b, k]` with `word[b, k]`."""
        batch = parent.shape[0]
        rows = (torch.arange(batch, device=self.device).unsqueeze(1) * self.width + parent).flatten()  # (R,)
        if self.width > 1 and self.config.method != "sample":
            self.state = {name: tensor[rows] for name, tensor in self.state.items()}
            self.finished = self.finished.gather(1, parent)
            self.lengths = self.lengths.gather(1, parent)
            self.tokens = self.tokens[rows]
            if self.attention is not None:
                self.attention = self.attention[rows]
        if self.keep_attention and "attention" in self.state:
            latest = self.state["attention"].unsqueeze(1)  # (R, 1, N)
            self.attention = latest if self.attention is None else torch.cat([self.attention, latest], dim=1)
        self.lengths = self.lengths + ~self.finished
        self.tokens = torch.cat([self.tokens, word.flatten().unsqueeze(1)], dim=1)
        self.finished = self.finished | (word == EOS)

    def _release(self, *, last: bool) -> bool:
        """Let go of the images that are done; whether any is left.

        An image is done when as many hypotheses as are wanted are finished and nothing alive can pass them. A
        log-probability only falls; a score under a length penalty is bounded by the longest length.
        """
        scores = self._rank(self.log_probs, self.lengths.clamp(min=1.0))  # (B, K)
        done = self.finished.all(dim=1)
        if self.config.method != "sample" and self.config.diversity_groups == 1:
            wanted = min(self.config.num_captions, self.width)
            ends = scores.masked_fill(~self.finished, -torch.inf).topk(wanted, dim=1).values[:, -1]  # (B,)
            longest = torch.full_like(self.lengths, self.config.max_tokens + 1.0)
            bound = self._rank(self.log_probs, longest).masked_fill(self.finished, -torch.inf).amax(dim=1)
            done = done | ((ends >= bound) & (ends > -torch.inf))
        if last:
            done = torch.ones_like(done)
        if not bool(done.any()):
            return True
        # Shrinking the batch copies every tensor: only worth it when a good part has gone, or all have.
        if not last and not bool(done.all()) and int(done.sum()) * 4 < len(done):
            return True
        self._collect(done, scores)
        keep = ~done
        rows = keep.repeat_interleave(self.width)
        self.images, self.log_probs = self.images[keep], self.log_probs[keep]
        self.finished, self.lengths = self.finished[keep], self.lengths[keep]
        self.tokens = self.tokens[rows]
        self.state = {name: tensor[rows] for name, tensor in self.state.items()}
        self.memory = {name: tensor[keep] for name, tensor in self.memory.items()}
        if self.attention is not None:
            self.attention = self.attention[rows]
        return len(self.images) > 0

    def _collect(self, done: Tensor, scores: Tensor) -> None:
        """Write down the captions of the images that are done, best first, equal captions once."""
        tokens = self.tokens[:, 1:].unflatten(0, (-1, self.width))  # (B, K, L)
        wanted = self.config.num_captions
        for b in done.nonzero().flatten().tolist():
            found: list[Hypothesis] = []
            ranking = scores[b].masked_fill(~self.finished[b], -torch.inf)  # ended captions before cut ones
            for k in ranking.argsort(descending=True, stable=True).tolist():
                log_prob = float(self.log_probs[b, k])
                if not math.isfinite(log_prob):
                    continue
                row = tokens[b, k].tolist()
                finished = EOS in row
                words = tuple(row[: row.index(EOS)] if finished else row)
                weights = self.attention[b * self.width + k, : len(words)] if self.attention is not None else None
                found.append(Hypothesis(words, log_prob, finished, weights))
            self.results[int(self.images[b])] = found[:wanted]


def _truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) → probabilities with the tail set to 0 (top-k; nucleus, Holtzman et al. 2020)."""
    if top_k and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # Keep a word when those before it have not reached top_p: the first always stays.
        keep = ordered.cumsum(dim=-1) - ordered < top_p
        probabilities = probabilities * torch.zeros_like(keep).scatter(-1, order, keep)
    return probabilities
