import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from captionlib.config import SearchConfig
from captionlib.search import Hypothesis
from captionlib.search.rows import Rows
from captionlib.search.sampling import Sampling, truncate
from captionlib.vocabulary import BOS, EOS
from tests.unit.search.chains import A, B, C, Chain

HALVES = torch.tensor([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (2, 1.0, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
        (4, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (9, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0, 0.45, [0.5, 0, 0, 0]),
        (0, 0.79, [0.5, 0.3, 0, 0]),
        (0, 0.81, [0.5, 0.3, 0.15, 0]),
        (0, 0.001, [0.5, 0, 0, 0]),
        (2, 0.6, [0.5 / 0.8, 0, 0, 0]),  # of the two that are left, the first has .625
        (2, 0.7, [0.5 / 0.8, 0.3 / 0.8, 0, 0]),
    ],
)
def test_truncation_by_hand(top_k: int, top_p: float, expected: list[float]) -> None:
    order = torch.tensor([2, 0, 3, 1])
    found = truncate(HALVES[order].log(), top_k, top_p)
    assert found.tolist() == pytest.approx(torch.tensor(expected)[order].tolist())


def test_ties_do_not_let_more_than_k_words_through() -> None:
    assert int((truncate(torch.zeros(3, 8), 2, 1.0) > 0).sum()) == 3 * 2
    assert int((truncate(torch.zeros(3, 8), 0, 0.25) > 0).sum()) == 3 * 2


def uniform(seed: int, image_id: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=np.array([seed, image_id], dtype=np.uint64))).random(shape)


def test_words_by_hand_from_the_stream_of_an_image() -> None:
    chances = {
        BOS: {A: 0.2, B: 0.3, C: 0.5},
        A: {EOS: 0.25, B: 0.75},
        B: {EOS: 0.5, A: 0.2, C: 0.3},
        C: {EOS: 0.6, A: 0.4},
    }
    config = SearchConfig(method="sample", num_captions=3, max_tokens=6, seed=11)
    [found] = Chain.first_order(chances).search(config, [42])
    expected = []
    for numbers in uniform(11, 42, (3, 7)):
        words: list[int] = []
        log_prob = 0.0
        for position, number in enumerate(numbers):
            following = chances[words[-1] if words else BOS]
            if position == 6:
                following = {EOS: following[EOS]}
            reached = 0.0
            for word in sorted(following):
                reached += following[word] / sum(following.values())
                if number < reached:
                    break
            log_prob += math.log(following[word])
            if word == EOS:
                break
            words.append(word)
        expected.append((tuple(words), log_prob))
    expected.sort(key=lambda item: -item[1])
    assert [h.tokens for h in found] == [words for words, _ in expected]
    assert [h.log_prob for h in found] == pytest.approx([log_prob for _, log_prob in expected], abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(method="sample", num_captions=4, max_tokens=6, seed=3),
        SearchConfig(method="sample", num_captions=3, max_tokens=5, top_k=3, temperature=1.5),
        SearchConfig(method="sample", num_captions=1, max_tokens=5, top_p=0.7, no_repeat_ngram=1),
    ],
    ids=["plain", "top-k", "top-p"],
)
def test_an_image_has_the_same_samples_in_any_batch(config: SearchConfig) -> None:
    chain = Chain.random(images=7, num_words=9, seed=1)
    ids = [100, 7, 10**12, 0, -5, 31, 2]
    together = chain.search(config, ids)
    assert len({tuple(h.tokens for h in found) for found in together}) > 4
    for images in ([0], [6, 2], [3, 1, 4, 5], [6, 5, 4, 3, 2, 1, 0]):
        found = chain.pick(images).search(config, [ids[image] for image in images])
        assert found == [together[image] for image in images]


def test_seed_and_id_change_the_samples() -> None:
    chain = Chain.random(images=1, num_words=20, seed=2)
    config = SearchConfig(method="sample", num_captions=4, seed=1)
    found = [chain.search(config, [9]), chain.search(config, [10]), chain.search(replace(config, seed=2), [9])]
    assert found[0] != found[1] != found[2] != found[0]
    assert chain.search(config) == chain.search(config, [0])  # position in the batch


def frequencies(chain: Chain, config: SearchConfig, draws: int) -> dict[tuple[int, ...], float]:
    """Of captions drawn for one image under many ids."""
    found = chain.pick([0] * draws).search(config, range(draws))
    counts: dict[tuple[int, ...], int] = {}
    for hypotheses in found:
        for hypothesis in hypotheses:
            counts[hypothesis.tokens] = counts.get(hypothesis.tokens, 0) + 1
    return {words: count / (draws * config.num_captions) for words, count in counts.items()}


# Two words at most. First a .6, b .4; then after a: end .3, a .29, b .41; after b: end .9, a .1.
SMALL = {BOS: {A: 0.6, B: 0.4}, A: {EOS: 0.3, A: 0.29, B: 0.41}, B: {EOS: 0.9, A: 0.1}}


@pytest.mark.parametrize(
    ("options", "chances"),
    [
        ({}, {(A,): 0.6 * 0.3, (A, A): 0.6 * 0.29, (A, B): 0.6 * 0.41, (B,): 0.4 * 0.9, (B, A): 0.4 * 0.1}),
        # Probabilities are squared: .36 to .16; .09 to .0841 to .1681; .81 to .01.
        (
            {"temperature": 0.5},
            {
                (A,): 0.36 / 0.52 * 0.09 / 0.3422,
                (A, A): 0.36 / 0.52 * 0.0841 / 0.3422,
                (A, B): 0.36 / 0.52 * 0.1681 / 0.3422,
                (B,): 0.16 / 0.52 * 0.81 / 0.82,
                (B, A): 0.16 / 0.52 * 0.01 / 0.82,
            },
        ),
        ({"top_k": 1}, {(A, B): 1.0}),
        # a and b; after a: b and end reach .71; after b: end.
        ({"top_p": 0.65}, {(A,): 0.6 * 0.3 / 0.71, (A, B): 0.6 * 0.41 / 0.71, (B,): 0.4}),
        (
            {"no_repeat_ngram": 1},
            {(A,): 0.6 * 0.3 / 0.71, (A, B): 0.6 * 0.41 / 0.71, (B,): 0.4 * 0.9, (B, A): 0.4 * 0.1},
        ),
        ({"min_tokens": 2}, {(A, A): 0.6 * 0.29 / 0.7, (A, B): 0.6 * 0.41 / 0.7, (B, A): 0.4}),
    ],
    ids=["plain", "temperature", "top-k", "top-p", "no-repeat", "long"],
)
def test_frequencies_are_the_chances(options: dict[str, float], chances: dict[tuple[int, ...], float]) -> None:
    config = SearchConfig(method="sample", num_captions=2, max_tokens=2, **options)  # type: ignore[arg-type]
    draws = 3000
    found = frequencies(Chain.first_order(SMALL, num_words=6), config, draws)
    assert set(found) == set(chances)
    for words, chance in chances.items():
        # Five standard deviations of a binomial share.
        assert found[words] == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / (2 * draws)) + 1e-6)


def test_the_log_probability_is_the_models_not_the_sharpened_one() -> None:
    chain = Chain.random(images=3, num_words=9, seed=5)
    config = SearchConfig(method="sample", num_captions=5, max_tokens=5, temperature=0.7, top_k=4)
    for image, found in enumerate(chain.search(config)):
        assert len(found) == 5
        log_probs = [hypothesis.log_prob for hypothesis in found]
        assert log_probs == sorted(log_probs, reverse=True)
        assert log_probs == pytest.approx([chain.log_prob(image, h.tokens) for h in found], abs=1e-5)


def test_equal_samples_stay() -> None:
    [found] = Chain.first_order({BOS: {A: 1.0}, A: {EOS: 1.0}}).search(SearchConfig(method="sample", num_captions=3))
    assert found == [Hypothesis((A,), 0.0, finished=True)] * 3


def test_samples_that_end_at_different_times_and_dead_ends() -> None:
    chances = {BOS: {A: 0.5, B: 0.5}, A: {EOS: 1.0}, B: {C: 1.0}}
    found = Chain.first_order(*[chances] * 20).search(SearchConfig(method="sample", num_captions=2))
    every = {(h.tokens, h.finished, round(math.exp(h.log_prob), 4)) for hypotheses in found for h in hypotheses}
    assert every == {((A,), True, 0.5), ((B, C), False, 0.5)}


def test_a_number_at_the_very_end_of_the_line_draws_the_last_word_that_has_a_chance() -> None:
    config = SearchConfig(method="sample")
    sampling = Sampling(config, [0, 1], torch.device("cpu"))
    sampling.uniform[0], sampling.uniform[1] = 1 - 2**-53, 0.0
    rows = Rows({"h": torch.zeros(2, 1)}, {}, keep_attention=False)
    line = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.7, 0.0, 0.0])
    _, word, gained = sampling.choose(line.log().expand(2, 1, -1), rows, 0)
    assert word.tolist() == [[4], [2]]
    assert gained.flatten().tolist() == pytest.approx([math.log(0.7), math.log(0.1)])
