"""Evaluates the dev split during training: the loss of the reference captions, and scores of generated captions.

The images are divided among the workers and the results are merged, so that every worker has the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from captionlib.captioners.from_features import Captioner
from captionlib.config import SearchConfig
from captionlib.metrics import MAIN_SCORE, score_captions
from captionlib.text import detokenize
from captionlib.training.batches import CaptionBatches
from captionlib.training.inputs import shown_on
from captionlib.training.learner import Learner
from captionlib.vocabulary import Vocabulary
from jobs.training.checkpoint import SCORE, add_up
from jobs.training.data import Split

CAPTIONS = "dev_captions"
"""Key of a row under which the captions of `shown_images` are stored."""
_IMAGES_AT_ONCE = 50
_NUM_SHOWN = 3


def shown_images(num_images: int) -> list[int]:
    """Return the positions of the few dev images whose captions are recorded for every epoch."""
    count = min(_NUM_SHOWN, num_images)
    return [i * num_images // count for i in range(count)]


@dataclass(frozen=True)
class DevEvaluation:
    """One worker's share of the dev split."""

    split: Split
    batches: CaptionBatches
    vocabulary: Vocabulary
    search: SearchConfig

    def evaluate(self, learner: Learner) -> dict[str, Any]:
        """Return the epoch's dev loss in nats per word, its scores and a few captions, with the averaged weights."""
        with learner.averaged_weights():
            sums = [learner.evaluate(batch) for batch in self.batches.epoch(0)]
            total = [sum(loss for loss, _ in sums), float(sum(words for _, words in sums))]
            loss, words = add_up(total, learner.world_size)
            captions = self._captions(learner)
        scores = score_captions(
            dict(enumerate(captions)), {i: list(texts) for i, texts in enumerate(self.split.captions)}
        )
        found: dict[str, Any] = {"dev_loss": loss / words, **scores.corpus}
        found[SCORE] = scores.corpus[MAIN_SCORE]
        found[CAPTIONS] = [captions[i] for i in shown_images(len(captions))]
        return found

    def _captions(self, learner: Learner) -> list[str]:
        """Caption each dev image."""
        learner.decoder.eval()
        device = next(learner.decoder.parameters()).device
        captioner = Captioner(None, learner.decoder)
        mine = np.arange(self.batches.rank, len(self.split.paths), learner.world_size)
        captions: dict[int, str] = {}
        for start in range(0, len(mine), _IMAGES_AT_ONCE):
            images = mine[start : start + _IMAGES_AT_ONCE]
            # Dev images have a single view, so nothing is drawn from the generator.
            loaded = self.batches.inputs.load(images, np.arange(len(images)), np.random.default_rng(0))
            found = captioner.caption_features(shown_on(loaded, device), self.search, images.tolist())
            for image, hypotheses in zip(images.tolist(), found, strict=True):
                captions[image] = detokenize(self.vocabulary.decode(hypotheses[0].tokens))
        if learner.world_size > 1:
            gathered: list[dict[int, str]] = [{} for _ in range(learner.world_size)]
            dist.all_gather_object(gathered, captions)
            captions = {image: text for part in gathered for image, text in part.items()}
        return [captions[image] for image in range(len(self.split.paths))]
