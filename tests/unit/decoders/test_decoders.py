"""What every decoder promises: one contract, of which training sees one side and search the other."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captionlib.captioners.from_features import Captioner
from captionlib.config import SearchConfig
from captionlib.decoders import DECODER_KINDS, Decoder, build_decoder
from captionlib.vocabulary import BOS, EOS, PAD
from tests.unit.decoders.captions import (
    CAPTIONS,
    CONFIGS,
    FEATURE_DIM,
    KINDS,
    NUM_WORDS,
    POSITIONS,
    SMALL,
    features,
    pad,
    small_decoder,
)

Words = dict[int, list[tuple[int, Tensor]]]


def by_forward(decoder: Decoder, images: Tensor, tokens: Tensor) -> tuple[Words, Tensor | None]:
    """Each caption's words and the log-probabilities (V,) that they were chosen from, as training sees them."""
    output = decoder(images, tokens)
    words: Words = {}
    log_probs = output.logits.log_softmax(dim=-1)
    for target, caption, row in zip(output.targets.tolist(), output.captions.tolist(), log_probs, strict=True):
        words.setdefault(caption, []).append((target, row))
    return words, output.attention


def by_step(decoder: Decoder, images: Tensor, tokens: Tensor) -> tuple[Words, Tensor | None]:
    """The same as search sees it: all captions of all images a word further at each step."""
    batch, per_image, length = tokens.shape
    memory = decoder.memory(images)
    state = {name: value.repeat_interleave(per_image, dim=0) for name, value in decoder.start(memory).items()}
    words: Words = {}
    looked = torch.zeros(batch * per_image, POSITIONS)
    for t in range(length - 1):
        log_probs, state = decoder.step(tokens[:, :, t].flatten(), state, memory)
        following = tokens[:, :, t + 1].flatten().tolist()
        for row in range(batch * per_image):
            if following[row]:
                words.setdefault(row, []).append((following[row], log_probs[row]))
                if "attention" in state:
                    looked[row] += state["attention"][row]
    return words, looked.unflatten(0, (batch, per_image)) if "attention" in state else None


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_word_by_word_equals_all_at_once(name: str) -> None:
    decoder, tokens = small_decoder(name), pad(CAPTIONS)
    expected, expected_attention = by_step(decoder, features(), tokens)
    found, attention = by_forward(decoder, features(), tokens)
    assert {caption: [word for word, _ in line] for caption, line in found.items()} == {
        b * 3 + k: [*caption, EOS]
        for b, of_image in enumerate(CAPTIONS)
        for k, caption in enumerate(of_image)
        if caption is not None
    }
    for caption, line in found.items():
        for (word, row), (expected_word, expected_row) in zip(line, expected[caption], strict=True):
            assert word == expected_word
            torch.testing.assert_close(row, expected_row, atol=1e-5, rtol=1e-5)
            assert float(row.exp().sum()) == pytest.approx(1, abs=1e-5)
    if expected_attention is None:
        assert attention is None
    else:
        torch.testing.assert_close(attention, expected_attention, atol=1e-5, rtol=1e-5)
        # Each word looks once; some of lstm_adaptive's looks go to the sentinel.
        words = torch.tensor([[0 if c is None else len(c) + 1 for c in of_image] for of_image in CAPTIONS]).float()
        total = attention.sum(dim=-1)  # type: ignore[union-attr]
        assert (total <= words + 1e-4).all()
        if "adaptive" in name:
            assert (total[words > 0] < words[words > 0] - 1e-3).all()
        else:
            torch.testing.assert_close(total, words)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_an_image_and_a_caption_know_nothing_of_the_others(name: str) -> None:
    decoder = small_decoder(name)
    together, _ = by_forward(decoder, features(), pad(CAPTIONS))
    for b, of_image in enumerate(CAPTIONS):
        for k, caption in enumerate(of_image):
            if caption is not None:
                alone, _ = by_forward(decoder, features()[b : b + 1], pad([[caption]]))
                for (_, row), (_, expected) in zip(alone[0], together[b * 3 + k], strict=True):
                    torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_words_depend_on_the_image_and_on_the_words_before_only(name: str) -> None:
    decoder = small_decoder(name)

    def lines(image_seed: int, *words: int) -> Tensor:
        return torch.stack([row for _, row in by_forward(decoder, features(1, image_seed), pad([[list(words)]]))[0][0]])

    first = lines(1, 5, 6, 7, 8)
    changed = lines(1, 5, 6, 9, 8)
    torch.testing.assert_close(first[:3], changed[:3])
    assert float((first[3] - changed[3]).abs().max()) > 1e-3
    assert float((first[0] - lines(2, 5, 6, 7, 8)[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beam_width=4, num_captions=3, max_tokens=8),
        SearchConfig(method="sample", num_captions=3, max_tokens=8),
    ],
    ids=["beam", "sample"],
)
@torch.no_grad()
def test_search_and_training_agree_on_log_probabilities(name: str, config: SearchConfig) -> None:
    decoder = small_decoder(name)
    captioner = Captioner(None, decoder)
    found = captioner.caption_features(features(4), config, keep_attention=True)
    tokens = pad([[list(hypothesis.tokens) for hypothesis in of_image] for of_image in found])
    scored, looked = by_forward(decoder, features(4), tokens)
    for b, of_image in enumerate(found):
        assert len(of_image) == 3
        for k, hypothesis in enumerate(of_image):
            log_prob = sum(float(row[word]) for word, row in scored[b * 3 + k])
            assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-4)
            if looked is not None and len(hypothesis.tokens) > 0:
                assert hypothesis.attention is not None
                assert hypothesis.attention.shape == (len(hypothesis.tokens), POSITIONS)
                assert (hypothesis.attention.sum(dim=0) <= looked[b, k] + 1e-4).all()


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_greedy_search_equals_reading_again_from_the_start(name: str) -> None:
    decoder = small_decoder(name)
    config = SearchConfig(method="greedy", max_tokens=6)
    for image, [found] in enumerate(Captioner(None, decoder).caption_features(features(4), config)):
        words: list[int] = []
        while len(words) < config.max_tokens:
            line, _ = by_forward(decoder, features(4)[image : image + 1], pad([[words]]))
            following = line[0][-1][1].clone()
            following[[0, 1, 3]] = -torch.inf
            if int(following.argmax()) == EOS:
                break
            words.append(int(following.argmax()))
        assert found.tokens == tuple(words)


@pytest.mark.parametrize("name", KINDS)
def test_captions_do_not_depend_on_the_batch(name: str) -> None:
    captioner = Captioner(None, small_decoder(name))
    images, ids = features(6), [3, 1, 4, 15, 9, 26]
    for config in (
        SearchConfig(beam_width=3, num_captions=2, max_tokens=8),
        SearchConfig(method="sample", num_captions=2, max_tokens=8),
    ):
        together = captioner.caption_features(images, config, ids)
        for chosen in ([2], [5, 0], [1, 2, 3, 4]):
            found = captioner.caption_features(images[chosen], config, [ids[i] for i in chosen])
            assert [[h.tokens for h in of_image] for of_image in found] == [
                [h.tokens for h in together[image]] for image in chosen
            ]


@pytest.mark.parametrize("name", KINDS)
def test_captions_are_learnt_by_heart(name: str) -> None:
    torch.manual_seed(0)
    decoder = build_decoder(replace(CONFIGS[name], dropout=0.0), FEATURE_DIM, NUM_WORDS)
    captions: list[list[list[int] | None]] = [[[5, 6, 5]], [[9]], [[4, 9, 10, 6]]]
    tokens = pad(captions)
    # A transformer of this size diverges at the LSTMs' learning rate.
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.003 if name == "transformer" else 0.03)
    losses = []
    for _ in range(120):
        output = decoder(features(), tokens)
        loss = F.cross_entropy(output.logits, output.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(NUM_WORDS), rel=0.4)  # starts near a guess
    assert losses[-1] < 0.05
    for config in (SearchConfig(method="greedy", max_tokens=8), SearchConfig(max_tokens=8)):
        found = Captioner(None, decoder.eval()).caption_features(features(), config)
        assert [list(best.tokens) for [best, *_] in found] == [caption for [caption] in captions]


@pytest.mark.parametrize("name", KINDS)
def test_all_parameters_learn(name: str) -> None:
    decoder = small_decoder(name)
    output = decoder(features(), pad(CAPTIONS))
    F.cross_entropy(output.logits, output.targets).backward()
    still = [name for name, p in decoder.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert still == []


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_scheduled_sampling_reads_the_models_own_words(name: str) -> None:
    decoder = small_decoder(name)
    words = decoder.get_submodule("words")
    words.embedding.weight.mul_(1000)  # type: ignore[operator, union-attr]  # so sure of its words that drawing them is no matter of chance
    words.output_bias[PAD] = -1e9  # type: ignore[operator]

    def choices(images: Tensor, caption: list[int]) -> list[int]:
        line, _ = by_forward(decoder, images, pad([[caption]]))
        return [int(row.argmax()) for _, row in line[0]]

    said: list[list[list[int] | None]] = []
    for image, of_image in zip(features().split(1), CAPTIONS, strict=True):
        said.append([])
        for caption in of_image:
            own = None if caption is None else list(caption)
            if own is not None and name == "transformer":  # what it says after each of the given words
                own = choices(image, own)[:-1]
            elif own is not None:  # what it says after its own words
                for place in range(len(own)):
                    own[place] = choices(image, own)[place]
            said[-1].append(own)
    assert said != CAPTIONS
    found = decoder(features(), pad(CAPTIONS), 0.0)
    assert torch.equal(found.targets, decoder(features(), pad(CAPTIONS)).targets)
    torch.testing.assert_close(found.logits, decoder(features(), pad(said)).logits, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_scheduled_sampling_mixes_and_learns(name: str) -> None:
    decoder = small_decoder(name).train()
    torch.manual_seed(3)
    output = decoder(features(), pad(CAPTIONS), 0.5)
    F.cross_entropy(output.logits, output.targets).backward()
    assert all(bool(p.grad.isfinite().all()) for p in decoder.parameters() if p.grad is not None)
    torch.manual_seed(3)
    assert torch.equal(decoder(features(), pad(CAPTIONS), 0.5).logits, output.logits)
    assert not torch.equal(decoder(features(), pad(CAPTIONS), 0.5).logits, output.logits)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_training(name: str) -> None:
    decoder, tokens = small_decoder(name), pad(CAPTIONS)
    expected = decoder(features(), tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = decoder(features(), tokens)
    F.cross_entropy(output.logits.float(), output.targets).backward()
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=0.3, rtol=0.1)


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_without_captions_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no image of this batch of 2 has a caption"):
        small_decoder(name)(features(2), torch.zeros(2, 1, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", KINDS)
def test_pooled_features_are_a_grid_of_one_position(name: str) -> None:
    decoder = small_decoder(name)
    found = Captioner(None, decoder).caption_features(features()[:, :1], SearchConfig(max_tokens=5))
    assert len(found) == 3


def test_the_table_of_kinds() -> None:
    assert set(DECODER_KINDS) == {"lstm_init", "lstm_attention", "lstm_adaptive", "transformer"}
    with pytest.raises(ValueError, match="unknown kind of decoder 'rnn'; known: lstm_init"):
        build_decoder(replace(SMALL, kind="rnn"), FEATURE_DIM, NUM_WORDS)  # type: ignore[arg-type]


PARAMETERS = {
    "lstm_init": {"project.layers.0", "project.layers.1", "embed_image", "cell", "output"},
    "lstm_attention-additive": {
        "project.layers.0",
        "project.layers.1",
        "init_h",
        "init_c",
        "attention.project_query",
        "attention.project_key",
        "attention.score",
        "gate",
        "cell",
        "output_h",
        "output_z",
    },
    "lstm_adaptive-additive": {
        "project.layers.0",
        "project.layers.1",
        "attention.project_query",
        "attention.project_key",
        "attention.score",
        "embed_image",
        "cell",
        "sentinel_x",
        "sentinel_h",
        "sentinel_key",
        "output",
    },
    "transformer": {"project.layers.0", "project.layers.1", "norm"}
    | {
        f"layers.{layer}.{part}"
        for layer in range(2)
        for part in (
            "norm_words",
            "norm_image",
            "norm_feed_forward",
            "project_words",
            "project_context",
            "image_attention.project_query",
            "image_attention.project_key",
            "image_attention.project_value",
            "image_attention.project_context",
            "feed_forward.0",
            "feed_forward.3",
        )
    },
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_names_of_parameters_that_checkpoints_hold(name: str) -> None:
    names = set(small_decoder(name).state_dict())
    assert {"words.embedding.weight", "words.output_bias"} < names
    assert {key.rsplit(".", 1)[0] for key in names if not key.startswith("words.")} == PARAMETERS[name]


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match=r"width 16 against a state of width 32: make decoder.projection_dim"):
        build_decoder(replace(SMALL, kind="lstm_adaptive", hidden_dim=32), FEATURE_DIM, NUM_WORDS)
    with pytest.raises(ValueError, match="'multi_head' has not: choose additive, dot"):
        build_decoder(replace(SMALL, kind="lstm_adaptive", attention="multi_head"), FEATURE_DIM, NUM_WORDS)
    with pytest.raises(ValueError, match="width 32 looks at features of width 16"):
        build_decoder(replace(SMALL, kind="transformer", hidden_dim=32), FEATURE_DIM, NUM_WORDS)
    with pytest.raises(ValueError, match="num_heads 5 must divide"):
        build_decoder(replace(SMALL, kind="transformer", num_heads=5), FEATURE_DIM, NUM_WORDS)


def test_a_transformer_says_how_long_its_captions_may_be() -> None:
    decoder = small_decoder("transformer")
    assert decoder.max_tokens == 12
    longest: list[list[list[int] | None]] = [[[5] * 11]]
    assert len(decoder(features(1), pad(longest)).targets) == 12
    with pytest.raises(ValueError, match=r"13 tokens, <eos> included, exceeds decoder.max_tokens 12"):
        decoder(features(1), pad([[[5] * 12]]))
    Captioner(None, decoder).caption_features(features(1), SearchConfig(max_tokens=11))
    with pytest.raises(ValueError, match=r"search\.max_tokens 12 exceeds the 11 words"):
        Captioner(None, decoder).caption_features(features(1), SearchConfig(max_tokens=12))


def test_the_transformers_cache_grows_in_dimension_1_and_the_image_is_not_copied() -> None:
    decoder = small_decoder("transformer")
    memory = decoder.memory(features(2))
    assert {name: tuple(value.shape) for name, value in memory.items()} == {
        "image_0": (2, POSITIONS, 32),
        "image_1": (2, POSITIONS, 32),
    }
    state = decoder.start(memory)
    assert state["words_0"].shape == (2, 0, 32)
    state = {name: value.repeat_interleave(3, dim=0) for name, value in state.items()}
    for t in range(1, 4):
        _, state = decoder.step(torch.full((6,), BOS), state, memory)
        assert state["words_0"].shape == state["words_1"].shape == (6, t, 32)
        assert state["attention"].shape == (6, POSITIONS)
