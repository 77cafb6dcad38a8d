import math

import pytest
import torch

from captionlib.decoders.base import FeatureProjection, LongestFirst, WordTable, choose_inputs
from captionlib.decoders.transformer import sinusoidal_positions
from captionlib.vocabulary import EOS
from tests.unit.decoders.captions import CAPTIONS, pad


def test_captions_longest_first() -> None:
    tokens = pad(CAPTIONS)
    order = LongestFirst(tokens)
    assert order.image_order.tolist() == [1, 2, 0]
    assert order.captions.tolist() == [[3, 4, 5], [7, 6, 8], [0, 2, 1]]
    # Words to predict, <eos> among them: 7 3 1, 6 5 -, 4 2 -.
    assert order.num_images == [3, 3, 3, 3, 2, 2, 1]
    assert order.num_captions == [3, 2, 2, 2, 2, 1, 1]
    assert torch.equal(order.tokens.flatten(0, 1), tokens.flatten(0, 1)[order.captions.flatten()])
    # 3 · 3 + 3 · 3 · 2 + 2 · 2 + 2 · 1 + 1 · 1 places; the first step reads the first word of each caption.
    assert len(order.places) == 34
    assert order.places[:9].tolist() == [8 * caption for caption in range(9)]
    assert order.places[-1] == 6
    # Captions of the first two steps: that of 1 word ends, and one is missing.
    assert order.caption_index[:14].tolist() == [3, 4, 5, 7, 6, 0, 2, 3, 4, 7, 6, 0, 2, 3]
    assert order.targets[:7].tolist() == [9, 6, EOS, 13, 4, 5, 8]
    assert order.words[:8].tolist() == [0, 1, 2, 3, 4, 6, 7, 9]


def test_words_share_their_vectors() -> None:
    tied, untied = WordTable(9, 4, tied=True), WordTable(9, 4, tied=False)
    assert sum(p.numel() for p in tied.parameters()) == 9 * 4 + 9
    assert sum(p.numel() for p in untied.parameters()) == 2 * 9 * 4 + 9
    x = torch.randn(2, 4)
    torch.testing.assert_close(tied.logits(x), x @ tied(torch.arange(9)).T)
    assert untied.output_weight is not None
    torch.testing.assert_close(untied.logits(x), x @ untied.output_weight.T)


def test_projected_features_are_normalised() -> None:
    projected = FeatureProjection(6, 8)(torch.randn(2, 3, 6) * 50 + 7)
    assert projected.shape == (2, 3, 8)
    torch.testing.assert_close(projected.mean(dim=-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    as_it_is = FeatureProjection(6, 0)
    x = torch.randn(2, 3, 6)
    assert as_it_is.out_dim == 6
    assert torch.equal(as_it_is(x), x)


def test_a_share_of_the_given_words_is_kept() -> None:
    torch.manual_seed(0)
    given = torch.full((100, 40), 5)
    logits = torch.full((100, 40, 8), -1e9)
    logits[..., 6] = 0.0
    assert (choose_inputs(given, logits, 1.0) == 5).all()
    assert (choose_inputs(given, logits, 0.0) == 6).all()
    share = (choose_inputs(given, logits, 0.75) == 5).float().mean()
    assert float(share) == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 4000))


def test_own_words_are_drawn_from_the_models_distribution() -> None:
    torch.manual_seed(0)
    chances = torch.tensor([0.1, 0.0, 0.6, 0.3])
    drawn = choose_inputs(torch.zeros(4000, dtype=torch.int64), chances.log().expand(4000, 4), 0.0)
    for word, chance in enumerate(chances.tolist()):
        tolerance = 5 * math.sqrt(chance * (1 - chance) / 4000) + 1e-9
        assert float((drawn == word).float().mean()) == pytest.approx(chance, abs=tolerance)


def test_positions_by_hand() -> None:
    positions = sinusoidal_positions(3, 5)
    assert positions.shape == (3, 5)
    assert positions[0].tolist() == [0, 1, 0, 1, 0]
    slow = 2 / 10_000 ** (2 / 5)
    expected = [math.sin(2), math.cos(2), math.sin(slow), math.cos(slow), math.sin(2 / 10_000 ** (4 / 5))]
    assert positions[2].tolist() == pytest.approx(expected)
