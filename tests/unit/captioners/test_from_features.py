import pytest
import torch
from torch import nn

from captionlib.captioners.from_features import Captioner
from captionlib.config import DetectorConfig, SearchConfig
from captionlib.word_detector import WordDetector
from tests.unit.decoders.captions import FEATURE_DIM, NUM_WORDS, POSITIONS, features, small_decoder


class Patches(nn.Module):
    """An encoder: the image's columns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4, FEATURE_DIM)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.permute(0, 3, 1, 2).flatten(2))


def test_from_images_to_words() -> None:
    torch.manual_seed(0)
    captioner = Captioner(Patches(), small_decoder("lstm_attention-additive")).eval()
    encoded = captioner.encode(torch.randn(4, 3, 4, POSITIONS))
    assert encoded.shape == (4, POSITIONS, FEATURE_DIM)
    found = captioner.caption_features(encoded, SearchConfig(beam_width=3, num_captions=2, max_tokens=6))
    assert [len(of_image) for of_image in found] == [2, 2, 2, 2]
    assert all(of_image[0].log_prob >= of_image[1].log_prob for of_image in found)
    assert {"encoder.layer.weight", "decoder.words.embedding.weight"} < set(captioner.state_dict())


def test_ready_made_features_need_no_encoder() -> None:
    captioner = Captioner(None, small_decoder("lstm_init"))
    assert len(captioner.caption_features(features(2), SearchConfig())) == 2
    with pytest.raises(ValueError, match="has no encoder for images"):
        captioner.encode(torch.zeros(1, 3, 4, 4))


def test_attention_is_collected_on_demand() -> None:
    captioner = Captioner(None, small_decoder("lstm_attention-additive"))
    [[caption]] = captioner.caption_features(features(1), SearchConfig(min_tokens=3), keep_attention=True)
    assert caption.attention is not None
    assert caption.attention.shape == (len(caption.tokens), POSITIONS)
    torch.testing.assert_close(caption.attention.sum(dim=-1), torch.ones(len(caption.tokens)))
    without = Captioner(None, small_decoder("lstm_init")).caption_features(
        features(1), SearchConfig(min_tokens=3), keep_attention=True
    )
    assert without[0][0].attention is None


def test_ids_key_the_samples() -> None:
    captioner = Captioner(None, small_decoder("transformer"))
    images, config = features(3), SearchConfig(method="sample", num_captions=2, max_tokens=6, seed=5)
    found = captioner.caption_features(images, config, [8, 9, 10])
    again = captioner.caption_features(images.flip(0), config, [10, 9, 8])
    assert [[h.tokens for h in of_image] for of_image in again[::-1]] == [
        [h.tokens for h in of_image] for of_image in found
    ]
    assert found != captioner.caption_features(images, config, [0, 1, 2])


def test_searching_leaves_no_gradients_behind() -> None:
    captioner = Captioner(None, small_decoder("lstm_attention-additive"))
    [[caption]] = captioner.caption_features(features(1).requires_grad_(), SearchConfig(), keep_attention=True)
    assert caption.attention is not None
    assert not caption.attention.requires_grad


def test_a_word_detector_chooses_among_the_beam() -> None:
    torch.manual_seed(0)
    decoder = small_decoder("lstm_attention-additive").eval()
    detector = WordDetector(DetectorConfig(hidden_dim=2), FEATURE_DIM, NUM_WORDS).eval()
    detector.frequencies.fill_(0.1)
    with torch.no_grad():
        detector.output.weight.zero_()
    images = features(2)
    beam = Captioner(None, decoder).caption_features(images, SearchConfig(beam_width=4, num_captions=4, max_tokens=5))
    last = beam[0][-1]  # the least probable caption of the first image
    wanted = [word for word in last.tokens if all(word not in other.tokens for other in beam[0][:-1])]
    with torch.no_grad():
        detector.output.bias.fill_(-5.0)
        detector.output.bias[wanted or list(last.tokens)] = 5.0
    captioner = Captioner(None, decoder, detector)
    config = SearchConfig(beam_width=4, max_tokens=5, detector_weight=1000.0)
    chosen = captioner.caption_features(images, config)[0][0]
    detected = captioner.detect(images)
    assert detected is not None
    assert chosen == max(beam[0], key=lambda h: detected[0].log_probability(h.tokens))
    assert captioner.caption_features(images, config, detected=detected)[0][0] == chosen
    unweighted = captioner.caption_features(images, SearchConfig(beam_width=4, max_tokens=5))
    assert unweighted[0][0] == beam[0][0]
