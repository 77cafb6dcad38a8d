"""Self-critical training: raises the probability of sampled captions with a high reward.

Rennie et al. 2017 (arXiv:1612.00563) with the baseline of Luo 2020 (arXiv:2003.09971): each sample is compared with the
mean of the other samples of the image. The reward is CIDEr-D with `<eos>` as a word of captions and references; without
it, captions that end in the middle of a phrase are not penalised, and most captions learn to do so.

Shapes: B images, K samples per image, N positions, D feature width, M words to predict, M' of them in samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captionlib.captioners.from_features import Captioner
from captionlib.config import SearchConfig
from captionlib.decoders import Decoder, DecoderOutput
from captionlib.metrics import CiderD
from captionlib.vocabulary import EOS, SPECIAL_WORDS, Vocabulary


@dataclass(frozen=True)
class Samples:
    """Sampled captions of a batch and their rewards."""

    captions: list[list[list[int]]]
    """Per image K captions as word ids, without `<bos>` and `<eos>`."""
    advantages: np.ndarray
    """(B, K) float: reward minus the mean reward of the image's other samples."""
    mean_reward: float


class SelfCritic:
    """Draws captions and computes their rewards.

    Args:
        reward: CIDEr-D against the training captions, with `<eos>`; its keys are positions of images.
        vocabulary: vocabulary of the decoder.
        num_samples: number of captions per image.
        max_tokens: longest caption that is drawn.
        seed: seed of the samples.
    """

    def __init__(self, reward: CiderD, vocabulary: Vocabulary, *, num_samples: int, max_tokens: int, seed: int) -> None:
        self.reward, self.vocabulary = reward, vocabulary
        self.num_samples, self.max_tokens, self.seed = num_samples, max_tokens, seed

    def samples(self, decoder: Decoder, features: Tensor, images: Sequence[int], step: int) -> Samples:
        """Draw and reward captions for features (B, N, D) of the images at these positions of the dataset."""
        # The seed depends on the step, so that a resumed run draws the same samples.
        config = SearchConfig(
            method="sample",
            num_captions=self.num_samples,
            max_tokens=self.max_tokens,
            seed=self.seed + 1_000_003 * (step + 1),
        )
        decoder.eval()
        found = Captioner(None, decoder).caption_features(features, config, images)
        decoder.train()
        hypotheses = [hypothesis for of_image in found for hypothesis in of_image]
        end = SPECIAL_WORDS[EOS]
        words = [self.vocabulary.decode(h.tokens) + [end] * h.finished for h in hypotheses]
        keys = [int(image) for image in images for _ in range(self.num_samples)]
        rewards = self.reward.score_many(words, keys).reshape(-1, self.num_samples)
        captions = [[list(hypothesis.tokens) for hypothesis in of_image] for of_image in found]
        return Samples(captions, advantages(rewards), float(rewards.mean()))


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Subtract from rewards (B, K) the mean of the other samples of the image (Luo 2020, eq. 4)."""
    num_samples = rewards.shape[1]
    if num_samples < 2:
        raise ValueError(f"self-critical training needs 2 samples or more per image, got {num_samples}")
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / (num_samples - 1)
    return rewards - others


def self_critical_loss(output: DecoderOutput, drawn: Tensor, samples: Samples, num_given: int) -> Tensor:
    """Compute the loss whose gradient is the negated gradient of the expected reward (Rennie et al. 2017, eq. 6).

    Args:
        output: output of the decoder on concatenated captions: for each image `num_given` references, then its samples.
        drawn: (M,) bool, which words belong to samples.
        samples: the samples.

    Returns:
        Scalar with gradient, a mean over the words of the samples.
    """
    num_samples = samples.advantages.shape[1]
    per_image = num_given + num_samples
    caption = output.captions[drawn]  # (M',) b * per_image + k
    image = caption.div(per_image, rounding_mode="floor")
    sample = image * num_samples + caption % per_image - num_given  # (M',) b * K + k
    log_probs = output.logits[drawn].float().log_softmax(dim=-1)
    chosen = log_probs.gather(1, output.targets[drawn].unsqueeze(1)).squeeze(1)  # (M',)
    advantage = torch.as_tensor(samples.advantages, dtype=chosen.dtype, device=chosen.device).flatten()
    return -(advantage[sample] * chosen).mean()
