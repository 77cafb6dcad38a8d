"""The predictor: every form of an image, every batch size, both engines; with a captioner of random weights."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captionlib.captioners.base import Caption
from captionlib.captioners.from_features import Captioner
from captionlib.captioners.predictor import Predictor
from captionlib.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from captionlib.config import DecoderConfig, EncoderConfig, ModelConfig, SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder
from captionlib.images.decode import ImageDecodeError
from captionlib.vocabulary import Vocabulary

PHOTOS = [Path(__file__).parents[2] / "photos" / f"{name}.jpg" for name in ("astronaut", "cat", "coffee", "rocket")]
GREEDY = SearchConfig(method="greedy", max_tokens=8)


@pytest.fixture
def predictor(tiny_checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(tiny_checkpoint, engine="torch")


def noise(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def close(one: list[list[Caption]], other: list[list[Caption]]) -> bool:
    """Equal words; log-probabilities but for rounding."""
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return all(a.text == b.text and a.log_prob == pytest.approx(b.log_prob, abs=1e-3) for a, b in pairs)


def test_a_path_bytes_and_an_image_are_the_same(predictor: Predictor) -> None:
    path = PHOTOS[0]
    captions = predictor.caption([path, str(path), path.read_bytes()])
    assert captions[0] == captions[1] == captions[2]
    assert captions[0][0].num_tokens == len(captions[0][0].text.split())
    assert (captions[0][0].log_prob or 0.0) < 0
    whole = predictor.caption([Image.open(path)])  # not reduced while it is decoded
    assert whole[0][0].text


def test_images_differ(predictor: Predictor) -> None:
    texts = {caption[0].text for caption in predictor.caption(PHOTOS)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
)
def test_any_mode(predictor: Predictor, mode: str) -> None:
    image = Image.open(PHOTOS[0]).resize((80, 60))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "F") else image.convert(mode)
    assert image.mode == mode
    assert predictor.caption([image])[0][0].text


def test_an_image_is_turned_upright(predictor: Predictor) -> None:
    image = Image.open(PHOTOS[0]).resize((80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    turned = Image.open(buffer)
    assert predictor.caption([turned]) == predictor.caption([image])


def test_no_images(predictor: Predictor) -> None:
    assert predictor.caption([]) == []
    assert predictor.caption_pixels(noise(0)) == []


def test_an_unreadable_image(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(ImageDecodeError, match="NotAnImage"):
        predictor.caption([b"<html>"])
    with pytest.raises(FileNotFoundError):
        predictor.caption([tmp_path / "none.jpg"])


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_the_batch_does_not_matter(predictor: Predictor, method: str) -> None:
    pixels = noise(32)
    ids = [1000 + i for i in range(32)]
    search = SearchConfig(method=method, num_captions=1 if method == "greedy" else 2, max_tokens=8)  # type: ignore[arg-type]
    whole = predictor.caption_pixels(pixels, search, ids)
    for size in (1, 7):
        parts = [
            caption
            for start in range(0, 32, size)
            for caption in predictor.caption_pixels(pixels[start : start + size], search, ids[start : start + size])
        ]
        assert close(parts, whole)


def test_samples_follow_the_image_id(predictor: Predictor) -> None:
    pixels = np.repeat(noise(1), 2, axis=0)
    search = SearchConfig(method="sample", num_captions=3, max_tokens=8)
    first, second = predictor.caption_pixels(pixels, search, [5, 6])
    assert [c.text for c in first] != [c.text for c in second]
    assert close(predictor.caption_pixels(pixels[:1], search, [6]), [second])


def test_the_search_of_the_checkpoint_is_the_default(tiny_checkpoint: Path, predictor: Predictor) -> None:
    pixels = noise(3)
    stored = load_checkpoint(tiny_checkpoint).search
    assert predictor.caption_pixels(pixels) == predictor.caption_pixels(pixels, stored)
    assert all(len(captions) == 1 for captions in predictor.caption_pixels(pixels))


def test_features_are_captioned_as_their_pixels(predictor: Predictor) -> None:
    pixels = noise(3)
    features = predictor.features(pixels)
    assert features.shape == (3, 4, 1280)
    assert features.dtype == np.float32
    assert close(predictor.caption_features(features), predictor.caption_pixels(pixels))


def test_threads_do_not_disturb_each_other(predictor: Predictor) -> None:
    pixels = noise(8)
    expected = [predictor.caption_pixels(pixels[i : i + 1], GREEDY) for i in range(8)]
    found: list[list[list[Caption]]] = [[]] * 8

    def work(i: int) -> None:
        found[i] = predictor.caption_pixels(pixels[i : i + 1], GREEDY)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(one, other) for one, other in zip(found, expected, strict=True))


def test_engines_give_the_same_captions(tiny_checkpoint: Path, predictor: Predictor) -> None:
    fast = Predictor.from_checkpoint(tiny_checkpoint, engine="openvino")
    assert fast.engine is not None
    assert fast.engine.name.startswith("openvino")
    assert fast.fingerprint == predictor.fingerprint
    assert close(fast.caption(PHOTOS), predictor.caption(PHOTOS))


def test_number_of_threads(tiny_checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        Predictor.from_checkpoint(tiny_checkpoint, num_threads=1, engine="torch")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_an_attention_map(predictor: Predictor) -> None:
    drawn = predictor.attention_map(PHOTOS[0], GREEDY)
    assert drawn.mode == "RGB"
    assert drawn.width > 224  # the photo, and a panel for each word


def test_an_attention_map_of_a_decoder_without_attention(tmp_path: Path) -> None:
    encoder = EncoderConfig()
    model = ModelConfig(encoder=encoder, decoder=DecoderConfig(kind="lstm_init", hidden_dim=8, embedding_dim=4))
    vocabulary = Vocabulary.build([["a", "dog"]])
    captioner = Captioner(build_encoder(encoder), build_decoder(model.decoder, encoder.feature_dim, len(vocabulary)))
    save_checkpoint(tmp_path, captioner, model, vocabulary)
    with pytest.raises(ValueError, match="nothing to draw"):
        Predictor.from_checkpoint(tmp_path, engine="torch").attention_map(PHOTOS[0], GREEDY)


def test_a_captioner_of_vectors(tmp_path: Path) -> None:
    encoder = EncoderConfig(kind="vectors", name="mine", features="pooled", feature_dim=6, num_positions=1)
    model = ModelConfig(encoder=encoder, decoder=DecoderConfig(projection_dim=0, hidden_dim=8, embedding_dim=4))
    vocabulary = Vocabulary.build([["a", "dog"]])
    torch.manual_seed(0)
    decoder = build_decoder(model.decoder, 6, len(vocabulary))
    save_checkpoint(tmp_path, Captioner(None, decoder), model, vocabulary)
    predictor = Predictor.from_checkpoint(tmp_path)
    captions = predictor.caption_features(np.random.default_rng(0).random((2, 1, 6)))
    assert len(captions) == 2
    assert set(captions[0][0].text.split()) <= {"a", "dog"}
    with pytest.raises(ValueError, match="caption_features"):
        predictor.caption([PHOTOS[0]])


def test_words_that_do_not_fit_the_weights(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    words = Vocabulary([*checkpoint.vocabulary.words, "more"])
    with pytest.raises(CheckpointError, match=r"decoder\.words\.embedding\.weight \(17, 16\) instead of \(18, 16\)"):
        Predictor(
            type(checkpoint)(**{**vars(checkpoint), "vocabulary": words}),
            engine="torch",
        )
