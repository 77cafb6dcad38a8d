"""Prepares the data of a training run: matches features or images with captions, and reports mistakes before Ray
starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from captionlib.checkpoints import Checkpoint, load_checkpoint, resolve_checkpoint
from captionlib.config import EncoderConfig, ModelConfig, to_dict
from captionlib.datasets import CaptionedImage, read_dataset, read_objects
from captionlib.errors import UserError
from captionlib.features.store import FeatureStore, open_features
from captionlib.storage.folder import Folder
from captionlib.text import tokenize
from captionlib.training.caption_filter import build_vocabulary, has_allowed_length, is_known
from captionlib.training.new_words import carry_over, extended
from captionlib.training.objects import ObjectLabels
from captionlib.vocabulary import Vocabulary
from jobs.training.settings import TrainSettings
from jobs.training.teachers import load_teacher


@dataclass(frozen=True)
class Split:
    """Images and captions of one split."""

    paths: list[str]
    """Paths of the images as the dataset states them."""
    captions: list[tuple[str, ...]]
    """Captions as written."""
    tokens: list[list[Sequence[str]]]
    """Tokenised captions to learn, at least one per image."""
    weights: list[list[float]] | None = None
    """Weight of each of these captions in the loss; None if all weights are 1."""

    @property
    def names(self) -> list[str]:
        """File names of the images, for display."""
        return [os.path.basename(path) for path in self.paths]

    def selected(self, keep: Callable[[Sequence[str]], bool]) -> Split:
        """Return a copy with only the captions for which `keep` is true, without images that have none left."""
        chosen = [[k for k, caption in enumerate(of_image) if keep(caption)] for of_image in self.tokens]
        images = [i for i, of_image in enumerate(chosen) if of_image]
        weights = self.weights
        return replace(
            self,
            paths=[self.paths[i] for i in images],
            captions=[self.captions[i] for i in images],
            tokens=[[self.tokens[i][k] for k in chosen[i]] for i in images],
            weights=None if weights is None else [[weights[i][k] for k in chosen[i]] for i in images],
        )


@dataclass(frozen=True)
class Prepared:
    """Everything that a run starts from. It is sent to the workers, so that they need not read captions."""

    settings: TrainSettings
    encoder: EncoderConfig
    encoder_fingerprint: str | None
    """Fingerprint of the encoder of the features; None for ready-made features, and if the encoder runs in training."""
    vocabulary: Vocabulary
    train: Split
    dev: Split
    encoder_weights: dict[str, Tensor] | None = None
    """Encoder weights of a checkpoint; None for the library's weights."""
    decoder_weights: dict[str, Tensor] | None = None
    """Decoder weights to start from; None to start from random weights."""
    origin_fingerprint: str | None = None
    """Fingerprint of the checkpoint that the weights come from."""
    teachers: tuple[Checkpoint, ...] = ()
    """Captioners whose decoders are the teachers."""
    objects: ObjectLabels | None = None
    """Object labels of the training images; None if objects are not learnt."""
    left_out: str = ""
    """Message on what the caption filter removed; empty if nothing."""

    @property
    def model(self) -> ModelConfig:
        """Configuration of the captioner that is trained."""
        return ModelConfig(encoder=self.encoder, decoder=self.settings.decoder)

    def identity(self) -> dict[str, Any]:
        """Fingerprints of all inputs, independent of their location. Runs with different identities are different
        runs.
        """
        digests = {}
        for name, split in (("train", self.train), ("dev", self.dev)):
            text = json.dumps([split.names, split.tokens] + ([] if split.weights is None else [split.weights]))
            digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
        extra = {"teachers": [teacher.fingerprint for teacher in self.teachers]} if self.teachers else {}
        if self.objects is not None:
            extra["objects"] = [self.objects.digest()]
        return extra | {
            "encoder": to_dict(self.encoder),
            "encoder_weights": self.encoder_fingerprint,
            "start_from": self.origin_fingerprint,
            "captions": digests,
        }

    def summary(self) -> str:
        """Description of the run for the user."""
        captions = sum(len(tokens) for tokens in self.train.tokens)
        decoder, encoder = self.settings.decoder, self.encoder
        kind = f"{decoder.kind} ({decoder.attention})" if decoder.kind == "lstm_attention" else decoder.kind
        source = "features"
        if self.settings.from_images:
            stage = self.settings.encoder.train_from
            source = (
                f"images through an encoder trained from {stage} on" if stage else "images through a frozen encoder"
            )
        return (
            f"train: {len(self.train.paths):,} images, {captions:,} captions{self.left_out}{self._objects()}; "
            f"dev: {len(self.dev.paths):,} images; vocabulary: {len(self.vocabulary):,} words\n"
            f"{source}: {encoder.name} {encoder.features}, {encoder.num_positions} x {encoder.feature_dim}; "
            f"decoder: {kind}"
        )

    def _objects(self) -> str:
        if self.objects is None:
            return ""
        return f", {len(self.objects.categories)} objects in {self.objects.num_labelled:,} of them"


def prepare(settings: TrainSettings) -> Prepared:
    """Read captions and features or images, and match them.

    Raises:
        UserError: a file is missing or wrong, images have no features, or the views disagree.
    """
    start = None if settings.start_from is None else _starting_point(settings, settings.start_from)
    origin = start
    if start is None and settings.encoder_checkpoint is not None:
        origin = load_checkpoint(resolve_checkpoint(settings.encoder_checkpoint))
    if settings.from_images:
        encoder, fingerprint = _encoder(settings, origin), None
    else:
        stated = stated_encoder(settings)
        store = open_features(settings.source, encoder=stated)
        for url in settings.also_features:
            _check_views(store, open_features(url, encoder=stated), url)
        encoder, fingerprint = store.encoder, store.fingerprint
    if not settings.from_images and origin is not None and origin.model.encoder != encoder:
        raise UserError(
            f"{settings.encoder_checkpoint} was trained with {origin.model.encoder.name} and {settings.source} is of "
            f"{encoder.name}: a decoder needs the encoder that it was trained with"
        )
    train, dev = (_read_split(settings, name) for name in (settings.data.train_split, settings.data.dev_split))
    for name, split in ((settings.data.train_split, train), (settings.data.dev_split, dev)):
        if settings.from_images:
            _check_images(split.paths, name)
        else:
            _check_features(store, split.paths, name, settings.source)
    rules = settings.training.filter
    everything, train = train, _some_left(train.selected(lambda caption: has_allowed_length(caption, rules)))
    objects = _read_objects(settings)
    vocabulary = _vocabulary(settings, train, objects, None if start is None else start.vocabulary)
    train = _some_left(train.selected(lambda caption: is_known(caption, vocabulary, rules)))
    for name, split in ((settings.data.train_split, train), (settings.data.dev_split, dev)):
        _check_shares(settings, len(split.paths), name)
    return Prepared(
        settings=settings,
        encoder=encoder,
        encoder_fingerprint=fingerprint,
        vocabulary=vocabulary,
        train=train,
        dev=dev,
        encoder_weights=None if origin is None else origin.part("encoder"),
        decoder_weights=None if start is None else carry_over(start.part("decoder"), start.vocabulary, vocabulary),
        origin_fingerprint=None if origin is None else origin.fingerprint,
        teachers=tuple(
            load_teacher(source, vocabulary, encoder, fingerprint, on_images=settings.from_images)
            for source in settings.teachers
        ),
        objects=_object_labels(settings, train, objects),
        left_out=_left_out(everything, train),
    )


def stated_encoder(settings: TrainSettings) -> EncoderConfig | None:
    """Return the encoder of ready-made features if the settings state it."""
    asked = settings.encoder
    if settings.from_images or asked.name is None:
        return None
    return asked.describe()


def _starting_point(settings: TrainSettings, source: str) -> Checkpoint:
    checkpoint = load_checkpoint(resolve_checkpoint(source))
    if checkpoint.model.decoder != settings.decoder:
        theirs, ours = to_dict(checkpoint.model.decoder), to_dict(settings.decoder)
        differing = [
            f"decoder.{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in ours if ours[key] != theirs[key]
        ]
        raise UserError(f"{source} cannot be started from: {'; '.join(differing)}")
    return checkpoint


def _encoder(settings: TrainSettings, origin: Checkpoint | None) -> EncoderConfig:
    """Return the encoder that runs in training, after checking that its weights and the stage to train from exist."""
    from captionlib.encoders import build_encoder

    asked = settings.encoder
    if origin is None:
        config = asked.describe()
    else:
        config = asked.describe_stored(origin.model.encoder, settings.encoder_checkpoint or "")
    build_encoder(config, pretrained=origin is None).freeze_before(asked.train_from)
    return config


def _check_views(store: FeatureStore, other: FeatureStore, url: str) -> None:
    """Check that two views show the same images in the same order through the same encoder."""
    if other.fingerprint != store.fingerprint or other.encoder != store.encoder:
        raise UserError(f"{url} was made by another encoder ({other.encoder.name}) than the first features")
    if [os.path.basename(p) for p in other.paths] != [os.path.basename(p) for p in store.paths]:
        raise UserError(f"{url} does not contain the same images as the first features")


def _check_features(store: FeatureStore, paths: Sequence[str], split: str, source: str) -> None:
    try:
        store.positions(paths)
    except ValueError as error:
        raise UserError(f"the split {split!r}, in {source}: {error}; extract the features of all images") from error


def _check_images(paths: Sequence[str], split: str) -> None:
    by_folder = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder[folder or "."].append(name)
    missing = []
    for folder, names in by_folder.items():
        there = set(Folder.of(folder).names())
        missing += [f"{folder}/{name}" for name in names if name not in there]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images of the split {split!r} do not exist, among them "
            f"{', '.join(missing[:3])}: give the folder of the images as the first argument"
        )


def _check_shares(settings: TrainSettings, num_images: int, split: str) -> None:
    """Check that every worker gets at least one image per step."""
    smallest = num_images // -(-num_images // settings.training.images_per_step)
    if smallest < settings.num_workers:
        raise UserError(
            f"the split {split!r} has {num_images} images, and steps of {smallest} images are too few for "
            f"{settings.num_workers} workers: lower --num-workers, or raise --training.images-per-step"
        )


def _read_split(settings: TrainSettings, name: str) -> Split:
    """Read the captions of one split."""
    data = settings.data
    images = read_dataset(
        data.kind,
        data.root,
        split=name,
        captions_file=data.captions_file,
        images_root=settings.source if settings.from_images else None,
    )
    if not images:
        raise UserError(f"the split {name!r} of {data.root or data.captions_file} contains no images")
    learnt = [_tokens(image) for image in images]
    return Split(
        paths=[image.path for image in images],
        captions=[image.captions for image in images],
        tokens=[[tokens for tokens, _ in captions] for captions in learnt],
        weights=None if all(image.weights is None for image in images) else [[w for _, w in c] for c in learnt],
    )


def _tokens(image: CaptionedImage) -> list[tuple[Sequence[str], float]]:
    """Tokenise the captions of an image, and return the tokens and weights of those that contain words."""
    weights = image.weights or (1.0,) * len(image.captions)
    tokens: list[tuple[Sequence[str], float]]
    tokens = [(tokenize(caption), weight) for caption, weight in zip(image.captions, weights, strict=True)]
    worded = [(words, weight) for words, weight in tokens if words]
    if not worded:
        raise UserError(f"no caption of {image.path} contains a word: {image.captions[:2]}")
    return worded


def _some_left(split: Split) -> Split:
    if not split.paths:
        raise UserError("no caption passes the filter (--training.filter): relax it")
    return split


def _left_out(before: Split, after: Split) -> str:
    """Describe what the caption filter removed; empty if nothing."""
    gone = sum(map(len, before.tokens)) - sum(map(len, after.tokens))
    images = len(before.paths) - len(after.paths)
    return f" (the filter left out {gone:,} captions and all of {images:,} images)" if gone else ""


def _vocabulary(
    settings: TrainSettings, train: Split, objects: Mapping[str, Sequence[str]], known: Vocabulary | None
) -> Vocabulary:
    """Return the words that the decoder learns; `known` is the vocabulary of the checkpoint to start from."""
    if known is not None and settings.start_words == "same":
        return known
    names = {word for of_image in objects.values() for name in of_image for word in tokenize(name)}
    frequent = build_vocabulary(train.tokens, settings.training, names)
    return frequent if known is None or settings.start_words == "anew" else extended(known, frequent)


def _read_objects(settings: TrainSettings) -> Mapping[str, Sequence[str]]:
    return {} if settings.data.objects_file is None else read_objects(settings.data.objects_file)


def _object_labels(settings: TrainSettings, train: Split, objects: Mapping[str, Sequence[str]]) -> ObjectLabels | None:
    path = settings.data.objects_file
    if path is None:
        return None
    labels = ObjectLabels.of(train.names, objects)
    if not labels.num_labelled:
        raise UserError(f"{path} names none of the training images: its keys should be file names")
    return labels
