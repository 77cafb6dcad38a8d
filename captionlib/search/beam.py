"""Beam search; greedy search is beam width 1.

Shapes: as in `captionlib.search`; C candidates of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.search.rows import Rows, rank
from captionlib.vocabulary import PAD


class Beam:
    """Keeps finished hypotheses in the beam with their score until better ones displace them.

    Groups (diverse beam search, Vijayakumar et al. 2018, section 4) are beams that are extended one after the other
    within a step: a word is penalised by `diversity_strength` for each hypothesis of an earlier group that chose it in
    this step. The penalty affects the choice of a group, but is not part of the log-probabilities.
    """

    def __init__(self, config: SearchConfig) -> None:
        self.config = config
        self.width = config.beam_width if config.method == "beam" else 1
        self.groups = config.diversity_groups if config.method == "beam" else 1

    def choose(self, log_probs: Tensor, rows: Rows, position: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Log-probabilities (B, K, V) → parents, words and log-probabilities of the new rows, each (B, width)."""
        gained, words = self._candidates(log_probs, rows.ended)  # (B, K, C)
        totals = (rows.log_probs.unsqueeze(-1) + gained).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        lengths = (rows.lengths + ~rows.ended).unsqueeze(-1)  # (B, K, 1)
        chosen = self._take_turns(rank(totals, lengths, self.config), words)  # (B, width)
        parent = chosen // words.shape[-1]
        word, new = words.flatten(1).gather(1, chosen), totals.flatten(1).gather(1, chosen)
        # If no hypothesis of an image can be continued, they stay as they are. NaN marks invalid output of the model.
        stuck = (new == -torch.inf).all(dim=1, keepdim=True)  # (B, 1)
        old = rows.log_probs.masked_fill(gained[..., 0].isnan(), torch.nan)
        stay = torch.arange(self.width, device=rows.device).clamp(max=rows.width - 1).expand_as(parent)
        parent = torch.where(stuck, stay, parent)
        word, new = word.masked_fill(stuck, PAD), torch.where(stuck, old.gather(1, stay), new)
        return (None if self.width == 1 else parent), word, new

    def done(self, rows: Rows) -> Tensor:
        """Return (B,) bool: enough hypotheses are finished, and no unfinished one can exceed them.

        A log-probability only decreases; with a length penalty, a score is bounded by that of the longest caption.
        """
        alive = ~rows.ended & (rows.log_probs > -torch.inf)  # (B, K)
        done = ~alive.any(dim=1)
        if self.groups == 1:  # with groups this bound is not valid, because several groups may end in the same caption
            wanted = min(self.config.num_captions, self.width)
            ends = rows.scores(self.config).masked_fill(~rows.ended, -torch.inf).topk(wanted, dim=1).values[:, -1]
            bound = rank(rows.log_probs, self.config.max_tokens + 1.0, self.config)
            bound = bound.masked_fill(~alive, -torch.inf).amax(dim=1)  # (B,)
            done = done | ((ends >= bound) & (ends > -torch.inf))
        return done

    def _candidates(self, log_probs: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best words of each row, best first: log-probabilities (B, K, C) and ids, with C = width.

        No row can contribute more words than that. This holds for groups as well: at most as many words are penalised
        as the other groups have hypotheses.
        """
        gained, words = log_probs.topk(min(self.width, log_probs.shape[-1]), dim=-1)
        if (missing := self.width - words.shape[-1]) > 0:  # the vocabulary is smaller than the beam
            gained, words = F.pad(gained, (0, missing), value=-torch.inf), F.pad(words, (0, missing), value=PAD)
        # A finished row has a single continuation: <pad> with log-probability 0.
        only = torch.full_like(gained[0, 0], -torch.inf)
        only[0] = 0.0
        ended = ended.unsqueeze(-1)
        return torch.where(ended, only, gained), words.masked_fill(ended, PAD)

    def _take_turns(self, scores: Tensor, words: Tensor) -> Tensor:
        """Choose the best candidates group by group: indices (B, width) into the flattened (B, K * C)."""
        if self.groups == 1:
            return scores.flatten(1).topk(self.width, dim=1).indices
        _, num_rows, num_candidates = words.shape
        size = self.width // self.groups
        chosen: list[Tensor] = []
        taken = words.new_empty(len(words), 0)  # (B, words chosen by earlier groups)
        for group in range(self.groups):
            first = group * size if num_rows == self.width else 0  # all groups share the candidates of the first word
            mine = slice(first, first + min(size, num_rows))
            times = (words[:, mine].unsqueeze(-1) == taken.view(len(words), 1, 1, -1)).sum(dim=-1)
            diverse = scores[:, mine] - self.config.diversity_strength * times  # (B, K / groups, C)
            best, index = diverse.flatten(1).topk(size, dim=1)
            chosen.append(index + first * num_candidates)
            word = words.flatten(1).gather(1, chosen[-1])
            nothing = (best == -torch.inf) | (word == PAD)  # a finished hypothesis chooses no word
            taken = torch.cat([taken, word.masked_fill(nothing, -1)], dim=1)
        return torch.cat(chosen, dim=1)
