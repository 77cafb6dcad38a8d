"""A decoder's word tensors for another vocabulary, worked by hand."""

from __future__ import annotations

import torch

from captionlib.config import DecoderConfig
from captionlib.decoders import build_decoder
from captionlib.training.new_words import WORD_TENSORS, carry_over, extended
from captionlib.vocabulary import SPECIAL_WORDS, Vocabulary

KNOWN = Vocabulary([*SPECIAL_WORDS, "a", "dog", "runs"])
WANTED = Vocabulary([*SPECIAL_WORDS, "zebra", "runs", "a"])


def test_known_words_keep_their_rows_and_a_new_one_starts_near_the_mean() -> None:
    table = torch.arange(7.0).unsqueeze(1).repeat(1, 1000) * 10  # row i is all 10 i
    bias = torch.tensor([0.0, 0, 0, 0, -1, -2, -3])
    other = torch.ones(2, 3)
    given = {"words.embedding.weight": table, "words.output_bias": bias, "cell.weight": other}
    carried = carry_over(given, KNOWN, WANTED)
    made = carried["words.embedding.weight"]
    assert torch.equal(made[:4], table[:4])
    assert torch.equal(made[5], table[6])  # runs
    assert torch.equal(made[6], table[4])  # a
    noise = made[4] - 50  # the mean of 40, 50 and 60
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 0.05) < 0.005
    # The biases of the words are -3, -2, -1: a tenth of the way from the lowest to the highest is -2.8.
    torch.testing.assert_close(carried["words.output_bias"], torch.tensor([0.0, 0, 0, 0, -2.8, -3, -1]))
    assert carried["cell.weight"] is other


def test_the_same_vocabulary_changes_nothing() -> None:
    decoder = build_decoder(DecoderConfig(hidden_dim=8, projection_dim=8, embedding_dim=4, attention_dim=4), 6, 7)
    weights = decoder.state_dict()
    carried = carry_over(weights, KNOWN, KNOWN)
    assert {name for name in weights if len(weights[name]) == 7} <= set(WORD_TENSORS)
    assert all(torch.equal(carried[name], weights[name]) for name in weights)


def test_untied_tables_are_carried_over_too() -> None:
    config = DecoderConfig(hidden_dim=8, projection_dim=8, embedding_dim=4, attention_dim=4, tie_weights=False)
    weights = build_decoder(config, 6, len(KNOWN)).state_dict()
    larger = build_decoder(config, 6, len(WANTED))
    larger.load_state_dict(carry_over(weights, KNOWN, WANTED))
    assert torch.equal(larger.state_dict()["words.output_weight"][5], weights["words.output_weight"][6])


def test_a_vocabulary_is_extended_behind_its_own_words() -> None:
    assert extended(KNOWN, WANTED).words == [*SPECIAL_WORDS, "a", "dog", "runs", "zebra"]
