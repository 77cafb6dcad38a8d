"""Compares tokens and scores with pycocoevalcap's on a dataset's captions: the long form of the parity test.

    python -m tests.parity.metrics_on_dataset flickr8k FOLDER --split dev
    python -m tests.parity.metrics_on_dataset coco ANNOTATIONS.json

Each image's first caption is scored against the others. Prints the number of captions whose tokens differ and
the largest difference of every score; exits with 1 unless all tokens are equal and all scores within 1e-9.
Needs Java and pycocoevalcap.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from captionlib.datasets import read_dataset
from captionlib.metrics import score_captions
from captionlib.text import tokenize
from tests.parity.reference_metrics import reference_scores, reference_tokens

TOLERANCE = 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", help="a kind of captionlib.datasets, such as flickr8k, coco, karpathy, csv")
    parser.add_argument("path", help="the dataset's folder (Flickr) or its captions file (all others)")
    parser.add_argument("--split", default="all")
    arguments = parser.parse_args()
    if arguments.kind.startswith("flickr"):
        records = read_dataset(arguments.kind, arguments.path, split=arguments.split)
    else:
        records = read_dataset(
            arguments.kind, ".", captions_file=arguments.path, images_root=".", split=arguments.split
        )
    captions = [caption for record in records for caption in record.captions]
    theirs = reference_tokens(captions)
    unequal = [
        (caption, tokens) for caption, tokens in zip(captions, theirs, strict=True) if tokenize(caption) != tokens
    ]
    print(f"{len(captions)} captions, {len(unequal)} tokenised differently")
    for caption, tokens in unequal[:20]:
        print(f"  {caption!r}\n    theirs {tokens}\n    ours   {tokenize(caption)}")
    several = [record for record in records if len(record.captions) > 1]
    largest = differences(
        {record.path: record.captions[0] for record in several},
        {record.path: record.captions[1:] for record in several},
    )
    print(f"{len(several)} images, largest differences of scores:")
    for name, difference in largest.items():
        print(f"  {name:16} {difference:.1e}")
    return int(bool(unequal) or max(largest.values()) > TOLERANCE)


def differences(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The largest absolute difference between ours and theirs by score, of the corpus and of any image."""
    ours = score_captions(hypotheses, references)
    corpus, images = reference_scores(hypotheses, references)
    largest = {name: abs(getattr(ours, name) - value) for name, value in corpus.items()}
    for name in corpus:
        pairs = ((ours.images[key][name], scores[name]) for key, scores in images.items())
        largest[f"{name}, image"] = max(abs(mine - other) for mine, other in pairs)
    return largest


if __name__ == "__main__":
    sys.exit(main())
