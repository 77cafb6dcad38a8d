import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import captionlib.search
from captionlib.config import SearchConfig
from captionlib.search import Hypothesis, search
from captionlib.vocabulary import BOS, EOS
from tests.unit.search.chains import A, B, C, Chain, all_captions, simple_beam

# A 6 × 6 matrix over <pad> <bos> <eos> <unk> a b. On paper:
#   after 1 word    a .6      b .4
#   after 2         a b .24   a a .18   b a .04            ended: b .36   a .18
#   after 3         a b a .024   a a b .072   a a a .054   ended: a b .216   a a .054   b a .012
PAPER = {BOS: {A: 0.6, B: 0.4}, A: {EOS: 0.3, A: 0.3, B: 0.4}, B: {EOS: 0.9, A: 0.1}}

SETTINGS = [
    SearchConfig(beam_width=1, max_tokens=4),
    SearchConfig(beam_width=2, num_captions=2, max_tokens=5),
    SearchConfig(beam_width=3, num_captions=1, max_tokens=6),
    SearchConfig(beam_width=5, num_captions=3, max_tokens=5, min_tokens=2),
    SearchConfig(beam_width=4, num_captions=4, max_tokens=5, length_penalty=1.0),
    SearchConfig(beam_width=3, num_captions=2, max_tokens=7, length_penalty=0.6, min_tokens=1),
    SearchConfig(beam_width=4, num_captions=2, max_tokens=7, no_repeat_ngram=2),
    SearchConfig(beam_width=3, num_captions=3, max_tokens=3, no_repeat_ngram=1),
    SearchConfig(beam_width=3, num_captions=3, max_tokens=4, allow_unk=True),
    SearchConfig(beam_width=12, num_captions=12, max_tokens=2),  # wider than the vocabulary
    SearchConfig(beam_width=4, num_captions=4, max_tokens=5, diversity_groups=2),
    SearchConfig(beam_width=4, num_captions=3, max_tokens=4, diversity_groups=4, diversity_strength=2.0),
    SearchConfig(beam_width=6, num_captions=6, max_tokens=4, diversity_groups=3, length_penalty=0.5),
    SearchConfig(beam_width=6, num_captions=6, max_tokens=5, diversity_groups=2, diversity_strength=6.0),
]


def words(found: list[Hypothesis]) -> list[tuple[int, ...]]:
    return [hypothesis.tokens for hypothesis in found]


def log_probs(found: list[Hypothesis]) -> list[float]:
    return [hypothesis.log_prob for hypothesis in found]


def test_beam_of_2_by_hand() -> None:
    [found] = Chain.first_order(PAPER, num_words=6).search(SearchConfig(beam_width=2, num_captions=2))
    assert words(found) == [(B,), (A, B)]
    assert log_probs(found) == pytest.approx([math.log(0.36), math.log(0.216)])
    assert all(hypothesis.finished for hypothesis in found)


def test_greedy_by_hand_misses_the_best_caption() -> None:
    [[found]] = Chain.first_order(PAPER, num_words=6).search(SearchConfig(method="greedy"))
    assert found.tokens == (A, B)
    assert found.log_prob == pytest.approx(math.log(0.216))


def test_no_room_ends_a_caption_at_what_ending_costs() -> None:
    [[found]] = Chain.first_order(PAPER, num_words=6).search(SearchConfig(method="greedy", max_tokens=1))
    assert found == Hypothesis((A,), pytest.approx(math.log(0.6 * 0.3)), finished=True)  # type: ignore[arg-type]


def test_length_penalty_by_hand() -> None:
    # .36 = .6² over 2 tokens, .216 = .6³ over 3: a tie where the exponent is 1.
    for length_penalty, expected in ((0.9, [(B,), (A, B)]), (1.1, [(A, B), (B,)])):
        config = SearchConfig(beam_width=4, num_captions=2, length_penalty=length_penalty)
        [found] = Chain.first_order(PAPER, num_words=6).search(config)
        assert words(found) == expected


def test_minimum_length_by_hand() -> None:
    [[found]] = Chain.first_order(PAPER, num_words=6).search(SearchConfig(beam_width=2, min_tokens=2))
    assert found.tokens == (A, B)


def test_diverse_groups_by_hand() -> None:
    chances = {BOS: {A: 0.5, B: 0.3, C: 0.2}, A: {EOS: 1.0}, B: {EOS: 1.0}, C: {EOS: 1.0}}
    config = SearchConfig(beam_width=2, num_captions=2, diversity_groups=2, diversity_strength=1.0)
    # The second group: a costs 1, ln .5 - 1 < ln .3. The reported log-probability is without the cost, and <eos>,
    # which both choose, costs as well but has no rival.
    [found] = Chain.first_order(chances).search(config)
    assert words(found) == [(A,), (B,)]
    assert log_probs(found) == pytest.approx([math.log(0.5), math.log(0.3)])
    # ln .5 - .4 > ln .3: both groups find the same caption, which is given once.
    [found] = Chain.first_order(chances).search(replace(config, diversity_strength=0.4))
    assert words(found) == [(A,)]


def test_words_of_earlier_groups_cost_in_their_step_only() -> None:
    # Second word: group 1 takes b .5 and c .3, group 2 then a .1, which costs nothing, and b. Third word: group 1
    # ends twice, so that b is free for group 2 to say.
    chances = {
        BOS: {A: 1.0},
        A: {B: 0.5, C: 0.3, A: 0.1, EOS: 0.1},
        B: {EOS: 1.0},
        C: {EOS: 1.0},
    }
    config = SearchConfig(
        beam_width=4, num_captions=4, diversity_groups=2, diversity_strength=3.0, max_tokens=3, min_tokens=2
    )
    [found] = Chain.first_order(chances).search(config)
    assert set(words(found)) >= {(A, B), (A, C), (A, A, B)}


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: f"width{config.beam_width}")
def test_beam_equals_one_written_with_lists(config: SearchConfig) -> None:
    for seed in range(3):
        chain = Chain.random(images=5, num_words=8, seed=seed)
        found = chain.search(config)
        for image in range(len(chain)):
            expected = simple_beam(chain, image, config)
            assert words(found[image]) == [caption for _, caption in expected]
            assert log_probs(found[image]) == pytest.approx([log_prob for log_prob, _ in expected], abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(max_tokens=4),
        SearchConfig(max_tokens=4, min_tokens=2, length_penalty=0.8),
        SearchConfig(max_tokens=5, no_repeat_ngram=1),
        SearchConfig(max_tokens=4, no_repeat_ngram=2, allow_unk=True),
    ],
    ids=["plain", "long", "no-repeated-word", "no-repeated-bigram"],
)
def test_a_wide_beam_equals_exhaustive_search(config: SearchConfig) -> None:
    for seed in range(3):
        chain = Chain.random(images=3, num_words=7, seed=seed)
        expected = [all_captions(chain, image, config) for image in range(len(chain))]
        width = max(map(len, expected))
        found = chain.search(replace(config, beam_width=width, num_captions=10))
        for image in range(len(chain)):
            assert words(found[image]) == [caption for _, caption in expected[image][:10]]
            assert log_probs(found[image]) == pytest.approx([p for p, _ in expected[image][:10]], abs=1e-5)


def test_greedy_is_a_beam_of_1() -> None:
    chain = Chain.random(images=20, num_words=9, seed=4)
    for length_penalty in (0.0, 1.0):
        config = SearchConfig(method="greedy", length_penalty=length_penalty)
        assert chain.search(config) == chain.search(replace(config, method="beam", beam_width=1))


def test_greedy_takes_the_most_probable_word() -> None:
    chain = Chain.random(images=6, num_words=9, seed=5)
    table = chain.log_probs.clone()
    table[..., [0, 1, 3]] = -torch.inf
    for image, [found] in enumerate(chain.search(SearchConfig(method="greedy", max_tokens=8))):
        line = [0, BOS]
        while line[-1] != EOS and len(line) < 10:
            line.append(int(table[image, line[-2], line[-1]].argmax()))
        assert found.tokens == tuple(word for word in line[2:] if word != EOS)
        assert found.log_prob == pytest.approx(chain.log_prob(image, found.tokens), abs=1e-5)


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: f"width{config.beam_width}")
def test_no_image_affects_another(config: SearchConfig) -> None:
    chain = Chain.random(images=7, num_words=8, seed=6)
    together = chain.search(config)
    for images in ([0], [6, 2], [3, 1, 4, 1, 5], [6, 5, 4, 3, 2, 1, 0]):
        assert chain.pick(images).search(config) == [together[image] for image in images]


def counting(length: int) -> dict[int, dict[int, float]]:
    """A chain that says words 4, 5, 6, ... up to a length, with hardly a doubt."""
    line = [BOS, *range(A, A + length), EOS]
    return {last: {word: 0.99, A: 0.01} for last, word in pairwise(line)}


def test_images_that_end_at_different_times() -> None:
    chain = Chain.first_order(*[counting(length) for length in (5, 1, 3, 0, 2, 1)], num_words=12)
    found = chain.search(SearchConfig(beam_width=2, max_tokens=9))
    assert [len(best.tokens) for [best] in found] == [5, 1, 3, 0, 2, 1]
    assert [best.tokens for [best] in found] == [tuple(range(A, A + n)) for n in (5, 1, 3, 0, 2, 1)]


def test_images_that_are_done_leave_the_batch() -> None:
    chain = Chain.first_order(*[counting(length) for length in (1, 1, 1, 4)], num_words=12)
    chain.search(SearchConfig(beam_width=2, max_tokens=9))
    # The first word needs one row per image. After the second (<eos>) three of four images have gone.
    assert chain.rows == [4, 8, 2, 2, 2]


@pytest.mark.parametrize(
    "config",
    [*SETTINGS, SearchConfig(method="sample", num_captions=3, max_tokens=6)],
    ids=lambda config: f"{config.method}{config.beam_width}",
)
@pytest.mark.parametrize("wait", [2, 4, 100])
def test_a_device_that_is_asked_less_often_finds_the_same(
    config: SearchConfig, wait: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = [Chain.random(images=6, num_words=8, seed=seed) for seed in range(3)]
    expected = [chain.search(config) for chain in chains]
    monkeypatch.setitem(captionlib.search.WORDS_BETWEEN_WAITS, "cpu", wait)
    assert [chain.search(config) for chain in chains] == expected


def test_a_device_that_is_asked_less_often_is_kept_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(captionlib.search.WORDS_BETWEEN_WAITS, "cpu", 3)
    chain = Chain.first_order(*[counting(length) for length in (1, 1, 1, 4)], num_words=12)
    found = chain.search(SearchConfig(beam_width=2, max_tokens=9))
    assert [len(best.tokens) for [best] in found] == [1, 1, 1, 4]
    # It is asked after the third word and after the sixth.
    assert chain.rows == [4, 8, 8, 2, 2, 2]


def test_an_image_is_done_when_nothing_can_pass_the_captions_that_are_wanted() -> None:
    # c and b have ended after the second word at .4 and .3; what began with a is at .3 · .5 then, and goes on.
    chances = {BOS: {A: 0.3, B: 0.3, C: 0.4}, A: {A: 0.5, B: 0.5}, B: {EOS: 1.0}, C: {EOS: 1.0}}
    for num_captions, steps in ((1, 2), (2, 2), (3, 3)):
        chain = Chain.first_order(chances)
        [found] = chain.search(SearchConfig(beam_width=3, num_captions=num_captions))
        assert words(found) == [(C,), (B,), (A, B)][:num_captions]
        assert len(chain.rows) == steps


@pytest.mark.parametrize(("short", "long"), [(A, B), (B, A)])
def test_a_tie_that_comes_later_changes_nothing(short: int, long: int) -> None:
    # One caption has ended at .5 when the image is done; another ends at .5 while the other images go on.
    tie = {BOS: {short: 0.5, long: 0.5}, short: {EOS: 1.0}, long: {C: 1.0}, C: {EOS: 1.0}}
    chain = Chain.first_order(tie, *[counting(5)] * 4, num_words=12)
    config = SearchConfig(beam_width=2, max_tokens=9)
    assert chain.search(config)[0] == chain.pick([0]).search(config)[0]
    assert words(chain.search(config)[0]) == [(short,)]


def test_a_finished_caption_is_frozen() -> None:
    # b ends at .36; the others go on for long and never pass it.
    chances = {BOS: {A: 0.6, B: 0.4}, A: {A: 0.9, EOS: 0.1}, B: {EOS: 0.9, A: 0.1}}
    config = SearchConfig(beam_width=3, num_captions=3, max_tokens=12)
    [found] = Chain.first_order(chances).search(config)
    best = next(hypothesis for hypothesis in found if hypothesis.tokens == (B,))
    assert best.log_prob == pytest.approx(math.log(0.36))


def test_attention_belongs_to_the_caption() -> None:
    chain = Chain.random(images=3, num_words=8, seed=7)
    for config in (SETTINGS[3], SearchConfig(method="greedy"), SearchConfig(method="sample", num_captions=3)):
        for found in chain.search(config, keep_attention=True):
            for hypothesis in found:
                assert hypothesis.attention is not None
                # The chain's attention is the word that it read, one-hot.
                read = [BOS, *hypothesis.tokens][:-1] if hypothesis.tokens else []
                assert hypothesis.attention.argmax(dim=-1).tolist() == read
    assert chain.search(SETTINGS[3])[0][0].attention is None


def test_a_dead_end_leaves_an_unfinished_caption() -> None:
    chances = {BOS: {A: 0.7, B: 0.3}, A: {B: 1.0}}
    [found] = Chain.first_order(chances).search(SearchConfig(beam_width=2, num_captions=2))
    assert [(h.tokens, h.finished) for h in found] == [((A, B), False)]
    assert found[0].log_prob == pytest.approx(math.log(0.7))
    [[found_1]] = Chain.first_order({BOS: {A: 1.0}, A: {A: 1.0}}).search(SearchConfig(method="greedy", max_tokens=3))
    assert (found_1.tokens, found_1.finished) == ((A, A, A), False)


def test_nothing_to_say() -> None:
    [[found]] = Chain.first_order({}).search(SearchConfig(beam_width=3, num_captions=3))
    assert (found.tokens, found.finished) == ((), False)


@pytest.mark.parametrize("config", [SETTINGS[1], SETTINGS[10], SearchConfig(method="sample", num_captions=2)])
def test_nan_spoils_one_image_only(config: SearchConfig) -> None:
    chain = Chain.random(images=3, num_words=8, seed=8)
    expected = chain.search(config)
    chain.log_probs[1] = torch.nan
    found = chain.search(config)
    assert [found[0], found[2]] == [expected[0], expected[2]]
    assert all(math.isnan(hypothesis.log_prob) and not hypothesis.finished for hypothesis in found[1])
    assert found[1]


def test_what_step_returns_is_not_written_to() -> None:
    fixed = torch.full((1, 9), -2.0)

    def step(tokens: torch.Tensor, state: dict, memory: dict) -> tuple[torch.Tensor, dict]:
        return fixed.expand(len(tokens), -1), state

    start = {"h": torch.zeros(2, 1)}
    for config in (
        SearchConfig(max_tokens=3),
        SearchConfig(max_tokens=5, no_repeat_ngram=1),
        SearchConfig(method="sample"),
    ):
        search(step, start, {"m": torch.zeros(2)}, config)
    assert torch.equal(fixed, torch.full((1, 9), -2.0))


def test_no_images_no_captions() -> None:
    chain = Chain.random(images=2, num_words=8, seed=0).pick([])
    assert chain.search(SearchConfig()) == []
    assert chain.search(SearchConfig(method="sample"), []) == []


def test_ids_must_be_as_many_as_images() -> None:
    with pytest.raises(ValueError, match="3 image_ids for 2 images"):
        Chain.random(images=2, num_words=8, seed=0).search(SearchConfig(), [1, 2, 3])


def test_steps_by_hand() -> None:
    [found] = Chain.first_order(PAPER, num_words=6).search(SearchConfig(beam_width=2, num_captions=2), keep_steps=True)
    one, other = found  # b, and a b
    assert one.word_log_probs == pytest.approx([math.log(0.4), math.log(0.9)])
    assert other.word_log_probs == pytest.approx([math.log(0.6), math.log(0.4), math.log(0.9)])

    def entropy(*chances: float) -> float:
        return -sum(chance * math.log(chance) for chance in chances)

    assert one.entropies == pytest.approx([entropy(0.6, 0.4), entropy(0.9, 0.1)], abs=1e-6)
    assert other.entropies == pytest.approx([entropy(0.6, 0.4), entropy(0.3, 0.3, 0.4), entropy(0.9, 0.1)], abs=1e-6)


@pytest.mark.parametrize("config", [*SETTINGS, SearchConfig(method="sample", num_captions=3, max_tokens=5)])
def test_steps_add_up_and_change_no_caption(config: SearchConfig) -> None:
    chain = Chain.random(3, 8, seed=1)
    without = chain.search(config)
    for plain, found in zip(without, chain.search(config, keep_steps=True), strict=True):
        assert words(plain) == words(found)
        for hypothesis in found:
            length = len(hypothesis.tokens) + hypothesis.finished
            assert len(hypothesis.word_log_probs) == len(hypothesis.entropies) == length
            assert sum(hypothesis.word_log_probs) == pytest.approx(hypothesis.log_prob, abs=1e-4)
            assert all(0 <= value <= math.log(8) + 1e-4 for value in hypothesis.entropies)
