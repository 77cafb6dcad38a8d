"""Computes all metrics for raw captions and references, with a signature of the settings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captionlib.errors import UserError
from captionlib.metrics import bleu, cider_d, rouge_l
from captionlib.metrics.bleu import BleuStats
from captionlib.metrics.cider_d import CiderDStats
from captionlib.metrics.ngrams import Tokens
from captionlib.metrics.rouge_l import RougeLStats
from captionlib.text import tokenize
from captionlib.version import __version__


@dataclass(frozen=True)
class ImageScores:
    """Scores of one caption; same scales as `Scores`."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider_d: float
    """CIDEr-D with the document frequencies of the whole corpus."""


@dataclass(frozen=True)
class Scores:
    """Corpus-level scores."""

    bleu_1: float
    """In [0, 1]. Like the other BLEU scores, it is computed on the corpus and is not the mean over images."""
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    """In [0, 1]: mean over the images, as CIDEr-D."""
    cider_d: float
    """In [0, 10]; about 1 for good captions of COCO, 0.5 for moderate captions of Flickr8k."""
    num_images: int
    signature: str
    """Everything that determines the scores except the captions; cite it with them."""
    images: Mapping[Hashable, ImageScores] = field(repr=False)
    """The scores of each image's caption, in the order of the captions."""


@dataclass
class CaptionStats:
    """Statistics of one caption or, after addition, of a corpus; workers' statistics are merged by addition."""

    keys: list[Hashable] = field(default_factory=list)
    """The images, in the order in which they were added."""
    num_references: list[int] = field(default_factory=list)
    """Number of references of each image."""
    bleu: list[BleuStats] = field(default_factory=list)
    """Counts of each image for BLEU."""
    rouge_l: list[RougeLStats] = field(default_factory=list)
    """Sum of each image for ROUGE-L."""
    cider_d: CiderDStats = field(default_factory=CiderDStats)

    def __add__(self, other: CaptionStats) -> CaptionStats:
        merged = CaptionStats()
        merged += self
        merged += other
        return merged

    def __iadd__(self, other: CaptionStats) -> CaptionStats:
        self.keys.extend(other.keys)
        self.num_references.extend(other.num_references)
        self.bleu.extend(other.bleu)
        self.rouge_l.extend(other.rouge_l)
        self.cider_d += other.cider_d
        return self

    def score(self) -> Scores:
        """The scores of everything that was added.

        Raises:
            ValueError: nothing was added, or an image twice.
        """
        if not self.keys:
            raise UserError("no captions to score")
        cider_scores = self.cider_d.image_scores()
        images = {
            key: ImageScores(*bleu_stats.score(), rouge_stats.score(), cider)
            for key, bleu_stats, rouge_stats, cider in zip(
                self.keys, self.bleu, self.rouge_l, cider_scores, strict=True
            )
        }
        if len(images) != len(self.keys):
            raise ValueError(f"{len(self.keys) - len(images)} images were added more than once")
        return Scores(
            *sum(self.bleu, BleuStats()).score(),
            rouge_l=sum(self.rouge_l, RougeLStats()).score(),
            cider_d=sum(cider_scores) / len(cider_scores),
            num_images=len(images),
            signature=signature(self.num_references),
            images=images,
        )


def statistics(key: Hashable, hypothesis: Tokens, references: Sequence[Tokens]) -> CaptionStats:
    """Return the statistics of one image's tokenised caption."""
    return CaptionStats(
        [key],
        [len(references)],
        [bleu.statistics(hypothesis, references)],
        [rouge_l.statistics(hypothesis, references)],
        cider_d.statistics(hypothesis, references),
    )


def score_captions(hypotheses: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> Scores:
    """BLEU-1..4, ROUGE-L and CIDEr-D of raw captions; they are tokenised here.

    Args:
        hypotheses: for each image its caption; an empty one counts as wrong, not as missing.
        references: for each image its references, one or more. The same images as `hypotheses`: references of
            others would change the document frequencies, and with them CIDEr-D.

    Raises:
        UserError: the images differ, or one has no references.
    """
    check_same_images(hypotheses, references)
    stats = CaptionStats()
    for key, hypothesis in hypotheses.items():
        stats += statistics(key, tokenize(hypothesis), [tokenize(text) for text in references[key]])
    return stats.score()


def check_same_images(hypotheses: Mapping[Any, object], references: Mapping[Any, Sequence[object]]) -> None:
    """Raises `UserError` unless every caption has references and every image with references a caption."""
    for what, keys in (
        ("captions have no references", [key for key in hypotheses if not references.get(key)]),
        ("images with references have no caption", [key for key in references if key not in hypotheses]),
    ):
        if keys:
            named = ", ".join(map(repr, keys[:3])) + (", …" if len(keys) > 3 else "")
            raise UserError(f"{len(keys)} {what}: {named}; score the same images in both")


def signature(num_references: Sequence[int]) -> str:
    """Return the settings that determine the scores, as in sacreBLEU (Post 2018): `name:value` joined by `|`."""
    fewest, most = min(num_references), max(num_references)
    return "|".join(
        (
            f"nimages:{len(num_references)}",
            f"nrefs:{fewest}" if fewest == most else f"nrefs:{fewest}-{most}",
            "case:lc",
            "tok:ptb-3.4.1-nopunct",
            "bleu:corpus,closest",
            f"rouge_l:beta{rouge_l.BETA}",
            f"cider_d:n{cider_d.MAX_ORDER},sigma{cider_d.SIGMA:g},df:corpus",
            f"captionlib:{__version__}",
        )
    )
