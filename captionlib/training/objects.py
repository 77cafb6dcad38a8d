"""An auxiliary loss in training: features of the encoder → object categories in the image.

Captions name few of the objects of a photo. A list of all objects also trains the encoder on photos without captions of
their own. Each position gives a logit for each category, and these are pooled (Fang et al. 2015, section 3, with a
smooth maximum instead of noisy-or: Pinheiro & Collobert 2015, equation 6).

Shapes: B images, N positions, D feature width, C categories.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from captionlib.datasets import DatasetError

UNKNOWN = -1
"""Label of all categories for an image without a list of objects."""


@dataclass(frozen=True)
class ObjectLabels:
    """The objects in the images of a dataset."""

    categories: tuple[str, ...]
    labels: np.ndarray
    """(images, C) int8: 1 present, 0 absent; a row of `UNKNOWN` for an image without a list."""

    @classmethod
    def of(cls, images: Sequence[str], objects: Mapping[str, Sequence[str]]) -> ObjectLabels:
        """Build the labels of images by file name, for all categories that any of these images shows.

        Raises:
            DatasetError: two images with a list of objects have the same file name.
        """
        listed = [image for image in images if image in objects]
        twice = {image for image in listed if listed.count(image) > 1} if len(set(listed)) < len(listed) else set()
        if twice:
            raise DatasetError(f"two training images are called {min(twice)!r}, and a list of objects is of one")
        categories = tuple(sorted({name for image in listed for name in objects[image]}))
        column = {name: c for c, name in enumerate(categories)}
        labels = np.full((len(images), len(categories)), UNKNOWN, np.int8)
        for i, image in enumerate(images):
            if image in objects:
                labels[i] = 0
                labels[i, [column[name] for name in objects[image]]] = 1
        return cls(categories, labels)

    @property
    def num_labelled(self) -> int:
        """Number of images with known objects."""
        return int((self.labels != UNKNOWN).any(axis=1).sum())

    def digest(self) -> str:
        """Hash that identifies the labels."""
        text = json.dumps(self.categories).encode() + self.labels.tobytes()
        return hashlib.sha256(text).hexdigest()[:16]


class ObjectsHead(nn.Module):
    """Features (B, N, D) → logits (B, C) that each category is present in the image."""

    def __init__(self, feature_dim: int, num_categories: int) -> None:
        super().__init__()
        self.classify = nn.Linear(feature_dim, num_categories)
        # A photo shows about 3 of 80 categories. With a bias of 0, the first steps would learn only this frequency.
        nn.init.constant_(self.classify.bias, -3.0)

    def forward(self, features: Tensor) -> Tensor:
        votes = self.classify(features).float()  # (B, N, C)
        return votes.logsumexp(dim=1) - math.log(votes.shape[1])


def objects_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy in nats, summed over the categories and over the images whose objects are known.

    Args:
        logits: (B, C).
        labels: (B, C) int8: 1, 0 or `UNKNOWN`.
    """
    known = labels != UNKNOWN
    each = F.binary_cross_entropy_with_logits(logits.float(), labels.clamp(min=0).float(), reduction="none")
    return (each * known).sum()
