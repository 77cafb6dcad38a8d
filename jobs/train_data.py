"""From features and captions to the numbers that training works on; all that can be wrong is found here, before Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from captionlib.checkpoints import Checkpoint, load_checkpoint
from captionlib.config import EncoderConfig, ModelConfig, to_dict
from captionlib.datasets import CaptionedImage, read_dataset
from captionlib.features import FeatureStore, open_features
from captionlib.text import tokenize
from captionlib.vocabulary import Vocabulary
from jobs.train_settings import TrainSettings


@dataclass(frozen=True)
class Split:
    """One split's images, matched with their features."""

    names: list[str]
    """File names."""
    rows: np.ndarray
    """Position of each image in the features."""
    captions: list[tuple[str, ...]]
    """As people wrote them."""
    tokens: list[list[list[str]]]


@dataclass(frozen=True)
class Prepared:
    """What the run starts from."""

    settings: TrainSettings
    encoder: EncoderConfig
    encoder_fingerprint: str | None
    """None where the features came ready-made."""
    vocabulary: Vocabulary
    train: Split
    dev: Split

    @property
    def model(self) -> ModelConfig:
        """The captioner that is trained."""
        return ModelConfig(encoder=self.encoder, decoder=self.settings.decoder)

    def summary(self) -> str:
        """What is about to be trained, for a person."""
        captions = sum(len(tokens) for tokens in self.train.tokens)
        decoder = self.settings.decoder
        kind = f"{decoder.kind} ({decoder.attention})" if decoder.kind == "lstm_attention" else decoder.kind
        return (
            f"train: {len(self.train.names):,} images, {captions:,} captions; dev: {len(self.dev.names):,} images; "
            f"vocabulary: {len(self.vocabulary):,} words\n"
            f"features: {self.encoder.name} {self.encoder.features}, "
            f"{self.encoder.num_positions} x {self.encoder.feature_dim}; decoder: {kind}"
        )


def prepare(settings: TrainSettings) -> Prepared:
    """Read the captions, open the features, match the two.

    Raises:
        ValueError: a file is missing or wrong, images have no features, the views disagree.
    """
    store = open_features(settings.features)
    for url in settings.also_features:
        check_views(store, open_features(url), url)
    train = read_split(settings, store, settings.data.train_split)
    dev = read_split(settings, store, settings.data.dev_split)
    if settings.start_from is not None:
        vocabulary = starting_point(settings).vocabulary
    else:
        words = (caption for image in train.tokens for caption in image)
        vocabulary = Vocabulary.build(words, min_count=settings.training.min_count)
    return Prepared(settings, store.encoder, store.fingerprint, vocabulary, train, dev)


def starting_point(settings: TrainSettings) -> Checkpoint:
    """The checkpoint to start from.

    Raises:
        ValueError: its decoder is another one than the settings ask for.
    """
    assert settings.start_from is not None
    checkpoint = load_checkpoint(settings.start_from)
    if checkpoint.model.decoder != settings.decoder:
        theirs, ours = to_dict(checkpoint.model.decoder), to_dict(settings.decoder)
        differing = [
            f"decoder.{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in ours if ours[key] != theirs[key]
        ]
        raise ValueError(f"{settings.start_from} cannot be started from: {'; '.join(differing)}")
    return checkpoint


def check_views(store: FeatureStore, other: FeatureStore, url: str) -> None:
    """Two views must show the same images in the same order through the same encoder."""
    if other.fingerprint != store.fingerprint or other.encoder != store.encoder:
        raise ValueError(f"{url} was made by another encoder ({other.encoder.name}) than the first features")
    if [os.path.basename(p) for p in other.paths] != [os.path.basename(p) for p in store.paths]:
        raise ValueError(f"{url} does not hold the same images as the first features")


def read_split(settings: TrainSettings, store: FeatureStore, split: str) -> Split:
    """One split's captions and where its images' features are."""
    data = settings.data
    images = read_dataset(data.kind, data.root, split=split, captions_file=data.captions_file)
    if not images:
        raise ValueError(f"the split {split!r} of {data.root or data.captions_file} holds no images")
    index = store.index_by_name()
    names = [os.path.basename(image.path) for image in images]
    missing = [name for name in names if name not in index]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(names)} images of the split {split!r} have no features in {settings.features}, "
            f"among them {', '.join(missing[:3])}: extract the features of all images first"
        )
    return Split(
        names=names,
        rows=np.array([index[name] for name in names]),
        captions=[image.captions for image in images],
        tokens=[_tokens(image) for image in images],
    )


def _tokens(image: CaptionedImage) -> list[list[str]]:
    tokens = [tokenize(caption) for caption in image.captions]
    worded = [caption for caption in tokens if caption]
    if not worded:
        raise ValueError(f"no caption of {image.path} has a word in it: {image.captions[:2]}")
    return worded
