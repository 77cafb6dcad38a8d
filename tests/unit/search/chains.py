"""Markov chains as models for search: small enough to be searched in full, by other code than the project's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.search import Hypothesis, Memory, State, search
from captionlib.vocabulary import BOS, EOS, PAD, UNK

A, B, C = 4, 5, 6


class Chain:
    """A model per image: the next word's probabilities, given the last two words (B, V, V, V)."""

    def __init__(self, chances: Tensor) -> None:
        self.log_probs = chances.double().log().float()
        self.rows: list[int] = []  # of each step

    @classmethod
    def first_order(cls, *chances: dict[int, dict[int, float]], num_words: int = 7) -> Chain:
        """From dicts {last word: {next word: probability}}, one per image."""
        table = torch.zeros(len(chances), num_words, num_words, num_words)
        for image, rows in enumerate(chances):
            for last, following in rows.items():
                for word, chance in following.items():
                    table[image, :, last, word] = chance
        return cls(table)

    @classmethod
    def random(cls, images: int, num_words: int, seed: int, spread: float = 2.0) -> Chain:
        """All words may follow all words, `<pad>`, `<bos>` and `<unk>` too."""
        generator = torch.Generator().manual_seed(seed)
        scores = spread * torch.randn(images, num_words, num_words, num_words, generator=generator)
        return cls(scores.softmax(dim=-1))

    def __len__(self) -> int:
        return len(self.log_probs)

    def pick(self, images: Sequence[int]) -> Chain:
        """The chain of these images only, in this order."""
        return Chain(self.log_probs[list(images)].exp())

    def step(self, tokens: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """`state` holds the last word but one; as attention, the last word one-hot."""
        self.rows.append(len(tokens))
        images = memory["table"].shape[0]
        image = torch.arange(images).repeat_interleave(len(tokens) // images)
        log_probs = memory["table"][image, state["before"], tokens]
        attention = torch.nn.functional.one_hot(tokens, log_probs.shape[-1]).float()
        return log_probs, {"before": tokens, "attention": attention}

    def search(
        self,
        config: SearchConfig,
        image_ids: Sequence[int] | None = None,
        *,
        keep_attention: bool = False,
        keep_steps: bool = False,
    ) -> list[list[Hypothesis]]:
        """The project's search on this chain."""
        num_words = self.log_probs.shape[-1]
        start = {
            "before": torch.full((len(self),), PAD),
            "attention": torch.zeros(len(self), num_words),
        }
        memory = {"table": self.log_probs}
        return search(self.step, start, memory, config, image_ids, keep_attention=keep_attention, keep_steps=keep_steps)

    def log_prob(self, image: int, words: Sequence[int]) -> float:
        """Of a caption, its `<eos>` included."""
        line = [PAD, BOS, *words, EOS]
        return sum(float(self.log_probs[image, line[i - 2], line[i - 1], line[i]]) for i in range(2, len(line)))


def allowed(chain: Chain, image: int, words: tuple[int, ...], config: SearchConfig) -> Iterator[tuple[int, float]]:
    """The words that may follow, `<eos>` among them, with their log-probabilities; word for word, in plain Python."""
    line = (PAD, BOS, *words)
    order = config.no_repeat_ngram
    ngrams = {words[i : i + order] for i in range(len(words) - order + 1)} if order else set()
    for word in range(chain.log_probs.shape[-1]):
        if word in (PAD, BOS) or (word == UNK and not config.allow_unk):
            continue
        if word == EOS and len(words) < config.min_tokens:
            continue
        if word != EOS and (len(words) == config.max_tokens or (order and (*words, word)[-order:] in ngrams)):
            continue
        yield word, float(chain.log_probs[image, line[-2], line[-1], word])


def all_captions(chain: Chain, image: int, config: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Every caption that the settings allow, with its log-probability, best first."""
    found: list[tuple[float, tuple[int, ...]]] = []
    open_ones: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while open_ones:
        log_prob, words = open_ones.pop()
        for word, gained in allowed(chain, image, words, config):
            if word == EOS:
                found.append((log_prob + gained, words))
            else:
                open_ones.append((log_prob + gained, (*words, word)))
    return sorted(found, key=lambda item: -_score(item[0], len(item[1]) + 1, config))


def simple_beam(chain: Chain, image: int, config: SearchConfig) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search as one writes it on paper: lists, no batch, no early end."""
    groups = config.diversity_groups
    size = config.beam_width // groups
    beams: list[list[tuple[float, tuple[int, ...], bool]]] = [[(0.0, (), False)] for _ in range(groups)]
    for _ in range(config.max_tokens + 1):
        taken: list[int] = []
        for group in range(groups):
            candidates = []
            for log_prob, words, ended in beams[group]:
                if ended:
                    candidates.append((_score(log_prob, len(words) + 1, config), log_prob, words, True, None))
                    continue
                for word, gained in allowed(chain, image, words, config):
                    total = log_prob + gained
                    score = _score(total, len(words) + 1, config) - config.diversity_strength * taken.count(word)
                    longer = words if word == EOS else (*words, word)
                    candidates.append((score, total, longer, word == EOS, word))  # type: ignore[arg-type]
            candidates.sort(key=lambda item: -item[0])
            beams[group] = [(total, words, ended) for _, total, words, ended, _ in candidates[:size]]
            taken += [word for *_, word in candidates[:size] if word is not None]  # type: ignore[misc]
    best = {words: log_prob for beam in beams for log_prob, words, _ in beam}
    ranked = sorted(best, key=lambda words: -_score(best[words], len(words) + 1, config))
    return [(best[words], words) for words in ranked][: config.num_captions]


def _score(log_prob: float, length: int, config: SearchConfig) -> float:
    return log_prob / math.pow(length, config.length_penalty)
