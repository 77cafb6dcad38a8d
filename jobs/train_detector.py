"""Train the word detector of a checkpoint: features of captioned images → the checkpoint with a second opinion.

    python -m jobs.extract_features flickr8k/Images features --encoder.checkpoint runs/mine/best
    python -m jobs.train_detector runs/mine/best features runs/mine/detecting --data flickr8k,flickr8k,train

A word detector predicts from an image which words people would use. The captions of a beam are re-ranked by it, and the
confidence is computed from it as well: run jobs.calibrate after this command. The encoder and the decoder stay as they
are. It takes minutes on a CPU, and Ray is not needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction

from captionlib.config import DetectorConfig
from captionlib.errors import UserError
from captionlib.ranges import NOT_NEGATIVE, check_ranges
from captionlib.storage.folder import Folder
from captionlib.training.settings import DetectorTraining
from jobs.cli.arguments import parse
from jobs.cli.exit_codes import run_command

if TYPE_CHECKING:
    from torch import Tensor

    from captionlib.checkpoints import Checkpoint
    from captionlib.datasets import CaptionedImage
    from captionlib.features.store import FeatureStore
    from captionlib.vocabulary import Vocabulary

PROG = "python -m jobs.train_detector"


@dataclass(frozen=True, kw_only=True)
class TrainDetectorSettings:
    """Settings of the training of a word detector."""

    model: Positional[str]
    """The checkpoint: a folder, a URL, or `default` for the one that comes with the project."""
    features: Positional[str]
    """Features of the images, written by jobs.extract_features with the checkpoint's encoder."""
    output: Positional[str]
    """Folder or URL of the new checkpoint. It may be the same as that of the original."""
    also_features: tuple[str, ...] = ()
    """Further features of the same images, such as mirrored ones; each step draws one view per image."""
    data: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Images with captions, as KIND,PATH,SPLIT: kinds, paths and splits as for jobs.evaluate. May be given several
times."""
    dev: str | None = None
    """Images that are not learnt, likewise; the loss on them is printed."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    training: DetectorTraining = field(default_factory=DetectorTraining)
    weight: float = 0.1
    """search.detector_weight of the new checkpoint: how much the detector counts when captions are re-ranked."""
    config: Path | None = None
    """A YAML or TOML file with any of these settings; the command line takes precedence."""

    def __post_init__(self) -> None:
        check_ranges(self, "--", weight=NOT_NEGATIVE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 written, 2 invalid request, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings = parse(TrainDetectorSettings, arguments, prog=PROG, description=__doc__ or "")
    return run_command(PROG, lambda: train(settings))


def train(settings: TrainDetectorSettings) -> int:
    """Read, train and write; return the exit code.

    Raises:
        UserError, OSError: the data, the output or the checkpoint cannot be used.
    """
    from captionlib.checkpoints import add_detector, changed_copy, load_checkpoint, resolve_checkpoint
    from captionlib.training.detector import mean_loss, train_detector
    from jobs.evaluation.inputs import read_captioned_images

    if not settings.data:
        raise UserError("give at least one data set of images with captions, such as --data flickr8k,flickr8k,train")
    directory = resolve_checkpoint(settings.model)
    checkpoint = load_checkpoint(directory)
    output = Folder.of(settings.output)
    output.check_writable()
    images = [image for text in settings.data for image in read_captioned_images("--data", text)]
    stores = [_open(url, checkpoint, settings.model) for url in (settings.features, *settings.also_features)]
    views, shares = _examples(stores, images, checkpoint.vocabulary)
    print(f"{len(images)} images, {len(checkpoint.vocabulary)} words", file=sys.stderr, flush=True)

    def report(epoch: int, loss: float) -> None:
        print(f"epoch {epoch} of {settings.training.epochs}: loss {loss:.2f}", file=sys.stderr, flush=True)

    detector = train_detector(views, shares, settings.detector, settings.training, report)
    if settings.dev is not None:
        dev, dev_shares = _examples(stores[:1], read_captioned_images("--dev", settings.dev), checkpoint.vocabulary)
        here, without = mean_loss(detector, dev[0], dev_shares)
        print(f"{settings.dev}: loss {here:.2f}; of the frequencies of the words alone {without:.2f}")
    with changed_copy(directory, output) as draft:
        add_detector(draft, detector, settings.detector, settings.weight)
    if checkpoint.confidence is not None:
        print("the calibration of confidence was removed, because captions change: run python -m jobs.calibrate")
    print(f"written to {output.url}")
    return 0


def _open(url: str, checkpoint: Checkpoint, model: str) -> FeatureStore:
    """Open features, and check that the checkpoint's encoder made them."""
    from captionlib.checkpoints import load_weights, weights_fingerprint
    from captionlib.encoders import build_encoder
    from captionlib.features.store import open_features

    encoder = checkpoint.model.encoder
    store = open_features(url, encoder=encoder if encoder.kind == "vectors" else None)
    made_by_another = store.encoder != encoder
    if store.fingerprint is not None and encoder.kind != "vectors" and not made_by_another:
        network = build_encoder(encoder, pretrained=False)
        load_weights(network, checkpoint.part("encoder"), model)
        made_by_another = weights_fingerprint(network) != store.fingerprint
    if made_by_another:
        raise UserError(
            f"the encoder of {model} did not make the features {url}: extract them with jobs.extract_features and "
            f"--encoder.checkpoint {model}"
        )
    return store


def _examples(
    stores: Sequence[FeatureStore], images: Sequence[CaptionedImage], vocabulary: Vocabulary
) -> tuple[list[Tensor], Tensor]:
    """Return the pooled features of the images in each view, and the share of their captions that have each word."""
    from captionlib.text import tokenize
    from captionlib.training.detector import pooled_views, word_shares

    paths = [image.path for image in images]
    views = [view for store in stores for view in pooled_views([store.array], store.positions(paths))]
    captions = [[vocabulary.encode(tokenize(caption)) for caption in image.captions] for image in images]
    weights = [list(image.weights or (1.0,) * len(image.captions)) for image in images]
    return views, word_shares(captions, weights, len(vocabulary))


if __name__ == "__main__":
    sys.exit(main())
