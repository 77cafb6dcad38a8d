"""Search, dev loss and captioning on a device that is not the host's: no tensor is left on the wrong one."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from captionlib.captioners.checkpoint import LoadedCheckpoint
from captionlib.captioners.from_features import Captioner
from captionlib.captioners.predictor import Predictor
from captionlib.config import DecoderConfig, SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder, describe_encoder
from captionlib.engines import build as runtime
from captionlib.engines.torch_engine import TorchEngine
from captionlib.training.batches import Batch, CaptionBatches, pad_captions
from captionlib.training.inputs import FeatureViews
from captionlib.training.learner import Learner
from captionlib.training.settings import TrainingSettings
from captionlib.vocabulary import SPECIAL_WORDS, Vocabulary
from jobs.batch.caption_model import CaptionImages
from jobs.batch.feature_model import EncodeImages
from jobs.training import checkpoint
from jobs.training.checkpoint import EpochSums, TrainingState
from jobs.training.data import Split
from jobs.training.dev_evaluation import DevEvaluation
from tests.simulated_cuda import Simulated, simulated_cuda

KINDS = ("lstm_init", "lstm_attention", "lstm_adaptive", "transformer")
SEARCHES = {
    "greedy": SearchConfig(method="greedy", max_tokens=6),
    "beam": SearchConfig(method="beam", beam_width=4, num_captions=2, max_tokens=6, no_repeat_ngram=2, min_tokens=2),
    "diverse beam": SearchConfig(method="beam", beam_width=4, diversity_groups=2, max_tokens=6),
    "sample": SearchConfig(method="sample", num_captions=3, max_tokens=6, top_k=5, top_p=0.9),
}


def decoder_of(kind: str):
    torch.manual_seed(0)
    config = DecoderConfig(
        kind=kind,  # type: ignore[arg-type]
        hidden_dim=8,
        embedding_dim=8,
        attention_dim=8,
        projection_dim=8,
        num_heads=2,
        num_layers=1,
    )
    return build_decoder(config, 6, 12).eval()


def test_the_simulated_device_refuses_tensors_of_the_host():
    with simulated_cuda() as device:
        there = torch.ones(2).to(device)
        assert isinstance(there, Simulated)
        assert there.device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_search_finds_on_a_device_what_it_finds_on_the_host(kind, search):
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 4, 6)).astype(np.float32))
    expected = Captioner(None, decoder_of(kind)).caption_features(features, search, range(5))
    with simulated_cuda() as device, torch.inference_mode():
        captioner = Captioner(None, decoder_of(kind).to(device))
        found = captioner.caption_features(features.to(device), search, range(5))
    assert [[h.tokens for h in of_image] for of_image in found] == [
        [h.tokens for h in of_image] for of_image in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_dev_loss_on_a_device_is_that_of_the_host(kind):
    tokens = pad_captions([[[5, 6, 7], [5]], [[8, 9]]])
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float16))
    batch = Batch(features, tokens, np.arange(2), 9, 3, 2)

    def loss(decoder):
        return Learner(decoder, decoder, TrainingSettings(ema_decay=0.9), steps_per_epoch=1).evaluate(batch)

    expected = loss(decoder_of(kind))
    with simulated_cuda() as device:
        decoder = decoder_of(kind).to(device)
        found = loss(decoder)
        with Learner(decoder, decoder, TrainingSettings(ema_decay=0.9), steps_per_epoch=1).averaged_weights():
            pass
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_predictor_captions_pixels_on_a_device(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 288, 288, 3), dtype=np.uint8)
    expected = Predictor.from_checkpoint(engine="torch").caption_pixels(pixels)
    # Streams and graphs cannot be simulated; the rest of the way can.
    monkeypatch.setattr(runtime, "CudaEngine", lambda encoder, pre, device, compiled: TorchEngine(encoder, pre, device))
    with simulated_cuda():
        predictor = Predictor.from_checkpoint()
        assert predictor.device.type == "cuda"
        found = predictor.caption_pixels(pixels)
        features = predictor.features(pixels)
    assert [c.text for of_image in found for c in of_image] == [c.text for of_image in expected for c in of_image]
    assert features.shape == (2, 81, 1280)


def test_the_caption_stage_on_a_device(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 288, 288, 3), dtype=np.uint8)
    search = SearchConfig(method="beam", beam_width=8, num_captions=2, max_tokens=6)

    def columns(predictor: Predictor) -> dict[str, list]:
        stage = CaptionImages(LoadedCheckpoint(predictor, search, 2), min_confidence=0.5)
        return {name: column.to_pylist() for name, column in stage(pixels, [4, 7])["captions"].items()}

    expected = columns(Predictor.from_checkpoint(engine="torch"))
    monkeypatch.setattr(runtime, "CudaEngine", lambda encoder, pre, device, compiled: TorchEngine(encoder, pre, device))
    with simulated_cuda():
        found = columns(Predictor.from_checkpoint())
    assert found["caption"] == expected["caption"]
    assert found["error"] == [None, None]
    assert found["log_prob"] == pytest.approx(expected["log_prob"], rel=1e-4)


def dev_evaluation(search: SearchConfig) -> DevEvaluation:
    tokens: list[list[Sequence[str]]] = [[("a", "b", "c"), ("a",)], [("e", "d")]]
    captions = [tuple(" ".join(caption) for caption in of_image) for of_image in tokens]
    vocabulary = Vocabulary([*SPECIAL_WORDS, *"abcdefgh"])
    features = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float16)
    batches = CaptionBatches(
        FeatureViews([features], np.arange(2)),
        [[vocabulary.encode(caption) for caption in of_image] for of_image in tokens],
        images_per_step=2,
    )
    split = Split(["0.jpg", "1.jpg"], captions, tokens)
    return DevEvaluation(split, batches, vocabulary, search)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_dev_evaluation_on_a_device(search):
    def scores(decoder):
        learner = Learner(decoder, decoder, TrainingSettings(ema_decay=0.9), steps_per_epoch=1)
        return dev_evaluation(search).evaluate(learner)

    expected = scores(decoder_of("lstm_attention"))
    with simulated_cuda() as device:
        found = scores(decoder_of("lstm_attention").to(device))
    assert found.pop("dev_captions") == expected.pop("dev_captions")
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_checkpoint_is_written_on_a_device_and_resumed_there(monkeypatch):
    tokens = pad_captions([[[5, 6, 7], [5]], [[8, 9]]])
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float16))
    settings = TrainingSettings(ema_decay=0.9)

    def learner_on(device):
        decoder = decoder_of("lstm_attention").to(device)
        return Learner(decoder, decoder, settings, steps_per_epoch=4)

    trained = learner_on("cpu")
    trained.step(Batch(features, tokens, np.arange(2), 9, 3, 2))
    expected = trained.state_dict()
    saved, written = torch.save, []
    # Tensors of the simulated device have no storage to be written.
    on_host = functools.partial(tree_map, lambda x: x.cpu() if isinstance(x, torch.Tensor) else x)
    monkeypatch.setattr(torch, "save", lambda state, path: saved(on_host(state), path))
    monkeypatch.setattr("ray.train.report", lambda metrics, checkpoint: written.append(_kept(checkpoint)))
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: written[-1])
    standing = TrainingState([{"epoch": 1}], EpochSums(steps=1, loss=2.0, words=9))
    with simulated_cuda() as device:
        learner = learner_on(device)
        learner.load_state_dict(expected)
        checkpoint.save(learner, standing, None, 0, lambda phase: None)
        resumed = learner_on(device)
        assert checkpoint.restore(resumed, 0) == standing
        found = on_host(resumed.state_dict())
    for name, value in expected["decoder"].items():
        assert torch.equal(found["decoder"][name], value)
        assert torch.equal(found["average"][name], expected["average"][name])
    for number, moments in expected["optimizer"]["state"].items():
        assert torch.equal(found["optimizer"]["state"][number]["exp_avg"], moments["exp_avg"])
    assert found["step_number"] == 1


def _kept(reported):
    """Ray copies the folder of a checkpoint before it is deleted."""
    folder = tempfile.mkdtemp()
    with reported.as_directory() as written:
        shutil.copytree(written, folder, dirs_exist_ok=True)
    return type(reported).from_directory(folder)


def test_a_run_is_resumed_on_the_device():
    settings = TrainingSettings(ema_decay=0.9)
    tokens = pad_captions([[[5, 6, 7], [5]], [[8, 9]]])
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float16))
    batch = Batch(features, tokens, np.arange(2), 9, 3, 2)
    first = decoder_of("lstm_attention")
    learner = Learner(first, first, settings, steps_per_epoch=4)
    learner.step(batch)
    state = learner.state_dict()  # as a checkpoint gives it: on the host
    expected = learner.evaluate(batch)
    with simulated_cuda() as device:
        decoder = decoder_of("lstm_attention").to(device)
        resumed = Learner(decoder, decoder, settings, steps_per_epoch=4)
        resumed.load_state_dict(state)
        assert resumed.average is not None
        assert {value.device.type for value in resumed.average.values()} == {"cuda"}
        with torch.no_grad():
            resumed._update_average()
        assert resumed.evaluate(batch) == pytest.approx(expected, rel=1e-5)
        with resumed.averaged_weights():
            resumed.evaluate(batch)


def test_features_are_extracted_on_a_device():
    config = describe_encoder("efficientnet_lite", "efficientnet_lite0", size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)

    def features(device: torch.device) -> dict[str, list[bytes]]:
        torch.manual_seed(0)
        engine = TorchEngine(build_encoder(config), config.preprocessing, device)
        made = EncodeImages(engine, config, flip=True, crops=1, batch_size=2)(pixels, [0, 1, 2])
        return {folder: columns["features"].to_pylist() for folder, columns in made.items()}

    expected = features(torch.device("cpu"))
    with simulated_cuda() as device:
        found = features(device)
    assert found == expected
    assert set(found) == {"features", "features_flipped", "features_crop_1"}
