"""Training from images that starts from a checkpoint starts as the captioner that the checkpoint is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from captionlib.captioners.from_features import Captioner
from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import compress_weights, load_checkpoint, weights_fingerprint
from captionlib.config import DecoderConfig
from captionlib.images.decode import decode_image
from captionlib.images.pixels import to_pixels
from captionlib.training.encoder_decoder import EncoderDecoder
from captionlib.training.settings import SelfCriticalSettings, TrainingSettings
from jobs.batch.feature_model import load_encoder
from jobs.training.data import prepare
from jobs.training.export import find_encoder
from jobs.training.model import build_model
from jobs.training.settings import DataSettings, TrainEncoderSettings, TrainSettings
from jobs.training.teachers import build_teachers
from tests.tiny_training import write_grid_features


def settings(images: Path, checkpoint: Path, encoder: TrainEncoderSettings) -> TrainSettings:
    return TrainSettings(
        source=str(images),
        run=str(images.parent / "run"),
        from_images=True,
        start_from=str(checkpoint),
        encoder=encoder,
        decoder=load_checkpoint(checkpoint).model.decoder,
        data=DataSettings(kind="csv", captions_file=str(images.parent / "captions.csv")),
    )


@pytest.fixture
def images(make_images: Callable[..., Path]) -> Path:
    folder = make_images(4)
    rows = [f"{i:04d}.jpg,a dog on the grass,{'train' if i < 3 else 'dev'}" for i in range(4)]
    (folder.parent / "captions.csv").write_text("\n".join(["path,caption,split", *rows]) + "\n")
    return folder


def test_it_starts_as_the_captioner_that_the_checkpoint_is(images: Path, tiny_checkpoint: Path) -> None:
    model = build_model(prepare(settings(images, tiny_checkpoint, TrainEncoderSettings(train_from="blocks.12"))))
    assert isinstance(model, EncoderDecoder)
    predictor = Predictor.from_checkpoint(tiny_checkpoint, engine="torch")
    photos = [decode_image(path.read_bytes()).image for path in sorted(images.iterdir())]
    pixels = np.stack([to_pixels(photo, predictor.preprocessing) for photo in photos])
    found = Captioner(None, model.eval()).caption_features(torch.from_numpy(pixels), predictor.search)
    expected = predictor.caption_pixels(pixels)
    for hypotheses, captions in zip(found, expected, strict=True):
        assert " ".join(predictor.vocabulary.decode(hypotheses[0].tokens)) == captions[0].text
        assert hypotheses[0].log_prob == pytest.approx(captions[0].log_prob, abs=1e-3)


def test_images_can_be_shown_to_it_in_another_size(images: Path, tiny_checkpoint: Path) -> None:
    known = load_checkpoint(tiny_checkpoint).model.encoder
    prepared = prepare(settings(images, tiny_checkpoint, TrainEncoderSettings(size=known.preprocessing.size + 32)))
    side = math.isqrt(known.num_positions) + 1
    assert prepared.encoder.preprocessing == replace(known.preprocessing, size=known.preprocessing.size + 32)
    assert prepared.encoder.num_positions == side**2
    assert prepared.model.encoder == prepared.encoder
    pixels = torch.zeros(1, *[prepared.encoder.preprocessing.size] * 2, 3, dtype=torch.uint8)
    model = build_model(prepared)
    assert isinstance(model, EncoderDecoder)
    assert model.encode(pixels).shape == (1, side**2, known.feature_dim)


def test_another_encoder_than_the_checkpoints_is_refused(images: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="has the encoder efficientnet_lite0, and resnet50 was asked for"):
        prepare(settings(images, tiny_checkpoint, TrainEncoderSettings(kind="torchvision", name="resnet50")))


def new_decoder(images: Path, source: Path, **options: object) -> TrainSettings:
    """A decoder that starts from nothing."""
    return TrainSettings(
        source=str(source),
        run=str(images.parent / "run"),
        decoder=DecoderConfig(hidden_dim=8, projection_dim=8, embedding_dim=8, attention_dim=8),
        data=DataSettings(kind="csv", captions_file=str(images.parent / "captions.csv")),
        **options,  # type: ignore[arg-type]
    )


def test_a_new_decoder_on_the_features_of_a_checkpoints_encoder(images: Path, tiny_checkpoint: Path) -> None:
    known = load_checkpoint(tiny_checkpoint)
    fingerprint = weights_fingerprint(load_encoder(known.model.encoder, str(tiny_checkpoint)))
    config = known.model.encoder
    features = np.zeros((4, config.num_positions, config.feature_dim), np.float32)
    source = images.parent / "features.parquet"
    write_grid_features(source, [path.name for path in sorted(images.iterdir())], features, fingerprint, config)

    encoder = find_encoder(
        prepare(new_decoder(images, source, encoder=TrainEncoderSettings(checkpoint=str(tiny_checkpoint))))
    )
    assert encoder is not None
    for name, value in encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, known.part("encoder")[name]), name
    with pytest.raises(ValueError, match=r"not those that made .*name with --encoder.checkpoint the model"):
        find_encoder(prepare(new_decoder(images, source)))


def test_a_new_decoder_on_images_through_a_checkpoints_encoder(images: Path, tiny_checkpoint: Path) -> None:
    encoder = TrainEncoderSettings(checkpoint=str(tiny_checkpoint))
    prepared = prepare(new_decoder(images, images, from_images=True, encoder=encoder))
    model = build_model(prepared)
    assert isinstance(model, EncoderDecoder)
    known = load_checkpoint(tiny_checkpoint)
    name = "backbone.network.head.conv.weight"
    assert torch.equal(model.encoder.state_dict()[name], known.part("encoder")[name])
    assert prepared.identity()["start_from"] == known.fingerprint


@pytest.mark.parametrize(("start_words", "has_new", "has_old"), [("extended", True, True), ("anew", True, False)])
def test_words_that_the_checkpoint_does_not_know(
    images: Path, tiny_checkpoint: Path, start_words: Literal["extended", "anew"], has_new: bool, has_old: bool
) -> None:
    captions = images.parent / "captions.csv"
    captions.write_text(captions.read_text().replace("the grass", "the zebra"))
    known = load_checkpoint(tiny_checkpoint)
    plain = settings(images, tiny_checkpoint, TrainEncoderSettings())
    assert prepare(plain).vocabulary.words == known.vocabulary.words
    old = next(word for word in known.vocabulary.words[4:] if word not in ["a", "dog", "on", "the", "zebra"])
    prepared = prepare(replace(plain, start_words=start_words))
    assert ("zebra" in prepared.vocabulary, old in prepared.vocabulary) == (has_new, has_old)
    model = build_model(prepared)
    assert isinstance(model, EncoderDecoder)
    common = next(word for word in ("a", "dog", "on", "the") if word in known.vocabulary)
    (here,), (there,) = prepared.vocabulary.encode([common]), known.vocabulary.encode([common])
    table = "words.embedding.weight"
    assert torch.equal(model.decoder.state_dict()[table][here], known.part("decoder")[table][there])


def test_new_words_are_for_a_run_that_starts_from_a_checkpoint(images: Path) -> None:
    with pytest.raises(ValueError, match="start-from"):
        TrainSettings(source=str(images), run="run", start_words="anew")


def test_a_checkpoint_to_start_from_brings_its_encoder(images: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="brings its own encoder"):
        settings(images, tiny_checkpoint, TrainEncoderSettings(checkpoint="default"))


def test_teachers_know_the_same_words_and_look_through_the_same_encoder(images: Path, tiny_checkpoint: Path) -> None:
    teacher = str(tiny_checkpoint)
    known = load_checkpoint(tiny_checkpoint)
    student = replace(settings(images, tiny_checkpoint, TrainEncoderSettings()), teachers=(teacher,))
    prepared = prepare(student)
    assert prepared.identity()["teachers"] == [known.fingerprint]
    teachers = build_teachers(prepared.teachers, on_images=True)
    assert teachers is not None
    for name, value in build_model(prepared).state_dict().items():
        assert torch.equal(value, teachers.decoders[0].state_dict()[name]), name

    with pytest.raises(ValueError, match=f"{teacher} has a vocabulary of .* words, not the 9 of this run"):
        prepare(new_decoder(images, images, from_images=True, teachers=(teacher,)))
    with pytest.raises(ValueError, match=r"efficientnet_lite0 at \d+ pixels, .*at 96: they need the same size"):
        prepare(replace(student, encoder=TrainEncoderSettings(size=96)))
    with pytest.raises(ValueError, match="cannot be combined"):
        replace(student, training=TrainingSettings(self_critical=SelfCriticalSettings(weight=0.5)))


def test_teachers_of_other_features_are_refused(images: Path, tiny_checkpoint: Path) -> None:
    known = load_checkpoint(tiny_checkpoint)
    config = known.model.encoder
    features = np.zeros((4, config.num_positions, config.feature_dim), np.float32)
    names, teacher = [path.name for path in sorted(images.iterdir())], str(tiny_checkpoint)
    source = images.parent / "features.parquet"
    student = replace(new_decoder(images, source), start_from=teacher, decoder=known.model.decoder, teachers=(teacher,))
    write_grid_features(source, names, features, "another", config)
    with pytest.raises(ValueError, match=f"features of other weights of .* --encoder.checkpoint {teacher}"):
        prepare(student)
    source.unlink()
    fingerprint = weights_fingerprint(load_encoder(config, teacher))
    write_grid_features(source, names, features, fingerprint, config)
    assert len(prepare(student).teachers) == 1


def test_a_compressed_checkpoint_is_a_start_and_a_teacher(images: Path, tiny_checkpoint: Path) -> None:
    known = load_checkpoint(tiny_checkpoint)
    config, source, place = known.model.encoder, images.parent / "features.parquet", str(tiny_checkpoint)
    features = np.zeros((4, config.num_positions, config.feature_dim), np.float32)
    fingerprint = weights_fingerprint(load_encoder(config, place))
    write_grid_features(source, [path.name for path in sorted(images.iterdir())], features, fingerprint, config)
    compress_weights(tiny_checkpoint)
    student = replace(new_decoder(images, source), start_from=place, decoder=known.model.decoder, teachers=(place,))
    prepared = prepare(student)
    compressed = load_checkpoint(tiny_checkpoint)
    assert prepared.identity()["start_from"] == compressed.fingerprint != known.fingerprint
    assert find_encoder(prepared) is not None
    teachers = build_teachers(prepared.teachers, on_images=False)
    assert teachers is not None
    for name, value in build_model(prepared).state_dict().items():
        assert torch.equal(value, compressed.part("decoder")[name]), name
