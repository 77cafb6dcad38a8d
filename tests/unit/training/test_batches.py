"""Batches: the same steps for any number of workers, worked by hand on tiny captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captionlib.training.batches import Batch, CaptionBatches, pad_captions
from captionlib.training.inputs import FeatureViews
from captionlib.vocabulary import BOS, EOS, PAD

# Five images whose features are their number, with captions of different count and length.
CAPTIONS = [
    [[10], [10, 11]],
    [[20, 21, 22]],
    [[30], [31], [32, 33]],
    [[40, 41]],
    [[50, 51, 52, 53], [54]],
]
FEATURES = np.arange(5, dtype=np.float16).reshape(5, 1, 1).repeat(2, axis=1)  # (5, 2, 1)


def make_batches(**options: object) -> CaptionBatches:
    settings: dict[str, object] = {"images_per_step": 2, "seed": 3} | options
    return CaptionBatches(FeatureViews([FEATURES], np.arange(5)), CAPTIONS, **settings)  # type: ignore[arg-type]


def test_padding_by_hand() -> None:
    tokens = pad_captions([[[7], [8, 9]], [[5]]])
    assert tokens.tolist() == [
        [[BOS, 7, EOS, PAD], [BOS, 8, 9, EOS]],
        [[BOS, 5, EOS, PAD], [PAD, PAD, PAD, PAD]],
    ]


def test_an_epoch_shows_every_image_once_with_its_own_features_and_captions() -> None:
    seen: list[int] = []
    for batch in make_batches().epoch(0):
        assert batch.features.dtype == torch.float16  # as it is stored
        for row, image in enumerate(batch.images):
            assert batch.features[row].unique().tolist() == [float(image)]
            words = [[t for t in caption if t > EOS] for caption in batch.tokens[row].tolist()]
            assert [caption for caption in words if caption] == CAPTIONS[image]
            seen.append(int(image))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert len(make_batches()) == 3


def test_epochs_differ_and_the_same_epoch_is_the_same() -> None:
    def order(epoch: int) -> list[int]:
        return [int(i) for batch in make_batches(images_per_step=1).epoch(epoch) for i in batch.images]

    assert order(0) == order(0)
    assert len({tuple(order(epoch)) for epoch in range(6)}) > 1


def test_words_are_counted_over_the_whole_step() -> None:
    # Every caption counts its words and <eos>: (1+1)+(2+1) + (3+1) + (1+1)+(1+1)+(2+1) + (2+1) + (4+1)+(1+1)
    assert sum(batch.num_words for batch in make_batches().epoch(0)) == 26


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("choice", ["all", "random"])
def test_workers_share_the_steps_that_one_worker_would_take(world_size: int, choice: str) -> None:
    def flat(batches: list[Batch]) -> list[tuple[int, list[list[int]]]]:
        return [
            (int(image), [[t for t in c if t != PAD] for c in batch.tokens[row].tolist() if c[0] == BOS])
            for batch in batches
            for row, image in enumerate(batch.images)
        ]

    whole = list(make_batches(images_per_step=4, choice=choice).epoch(1))
    shares = [
        list(make_batches(images_per_step=4, choice=choice, rank=rank, world_size=world_size).epoch(1))[:1]
        for rank in range(world_size)
    ]
    assert [entry for share in shares for entry in flat(share)] == flat(whole[:1])
    assert {batch.num_words for share in shares for batch in share} == {whole[0].num_words}


def test_steps_are_of_even_size() -> None:
    # 5 images, at most 4 per step: 3 and 2, not 4 and 1; so both workers have a share of each.
    shares = [list(make_batches(images_per_step=4, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    assert [len(batch.images) for batch in shares[0]] == [2, 1]
    assert [len(batch.images) for batch in shares[1]] == [1, 1]


def test_going_on_at_a_step_gives_the_rest_of_the_epoch() -> None:
    whole = list(make_batches(choice="random").epoch(2))
    rest = list(make_batches(choice="random").epoch(2, first_step=1))
    assert [b.images.tolist() for b in rest] == [b.images.tolist() for b in whole[1:]]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, whole[1:], strict=True))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("all", [[50, 51, 52, 53], [54]]),
        ("index", [[54]]),
        ("longest", [[50, 51, 52, 53]]),
        ("shortest", [[54]]),
    ],
)
def test_caption_choice(choice: str, expected: list[list[int]]) -> None:
    for batch in make_batches(choice=choice, caption_index=1, images_per_step=1).epoch(0):
        if batch.images.tolist() == [4]:
            captions = [[t for t in caption if t > EOS] for caption in batch.tokens[0].tolist()]
            assert captions == expected


def test_of_fewer_captions_than_the_index_the_last_is_taken() -> None:
    taken = {
        int(batch.images[0]): batch.tokens[0, 0, 1:-1].tolist()
        for batch in make_batches(choice="index", caption_index=1, images_per_step=1).epoch(0)
    }
    assert taken == {0: [10, 11], 1: [20, 21, 22], 2: [31], 3: [40, 41], 4: [54]}


def test_random_choice_takes_every_caption_at_some_time() -> None:
    taken = {
        tuple(batch.tokens[0, 0].tolist())
        for epoch in range(20)
        for batch in make_batches(choice="random", images_per_step=1).epoch(epoch)
        if batch.images.tolist() == [2]
    }
    assert taken == {(BOS, 30, EOS), (BOS, 31, EOS), (BOS, 32, 33, EOS)}


def test_views_are_mixed() -> None:
    views = [FEATURES, FEATURES + 100]
    batches = CaptionBatches(FeatureViews(views, np.arange(5)), CAPTIONS, images_per_step=5, seed=0)
    values = {float(v) >= 100 for epoch in range(4) for b in batches.epoch(epoch) for v in b.features[:, 0, 0]}
    assert values == {True, False}


def test_long_captions_are_cut() -> None:
    batches = make_batches(images_per_step=5, max_tokens=2)
    (batch,) = batches.epoch(0)
    assert batch.tokens.shape[-1] == 2 + 2


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="3 images but 5"):
        CaptionBatches(FeatureViews([FEATURES], np.arange(3)), CAPTIONS, images_per_step=2)
    with pytest.raises(ValueError, match="1 images do not give each of 4 workers"):
        make_batches(world_size=4)


def test_weights_follow_their_captions_by_hand() -> None:
    inputs = FeatureViews([np.zeros((2, 1, 3), np.float32)], np.arange(2))
    captions = [[[7], [8, 9]], [[5, 6, 7]]]
    batches = CaptionBatches(inputs, captions, images_per_step=2, weights=[[1.0, 0.5], [0.25]])
    (batch,) = batches.epoch(0)
    assert batch.weights is not None
    by_image = dict(zip(batch.images.tolist(), batch.weights.tolist(), strict=True))
    assert by_image == {0: [1.0, 0.5], 1: [0.25, 0.0]}
    assert batch.num_words == 1.0 * 2 + 0.5 * 3 + 0.25 * 4  # <eos> included


def test_captions_are_drawn_anew_in_every_epoch_and_none_twice() -> None:
    inputs = FeatureViews([np.zeros((1, 1, 3), np.float32)], np.arange(1))
    captions, weights = [[[word] for word in range(10, 15)]], [[0.1, 0.2, 0.3, 0.4, 0.5]]
    batches = CaptionBatches(
        inputs, captions, images_per_step=1, choice="random", captions_per_image=3, weights=weights, seed=0
    )
    seen = set()
    for epoch in range(20):
        (batch,) = batches.epoch(epoch)
        drawn = batch.tokens[0, :, 1].tolist()
        assert len(set(drawn)) == 3
        assert batch.weights is not None
        assert batch.weights[0].tolist() == pytest.approx([(word - 9) / 10 for word in drawn])
        seen.add(frozenset(drawn))
    assert len(seen) > 3
    few = CaptionBatches(inputs, [[[7]]], images_per_step=1, choice="random", captions_per_image=3)
    assert next(few.epoch(0)).tokens.shape == (1, 1, 3)


def test_labels_follow_their_images_and_are_counted_over_all_workers() -> None:
    inputs = FeatureViews([np.zeros((4, 1, 3), np.float32)], np.arange(4))
    labels = np.array([[1, 0], [-1, -1], [0, 0], [0, 1]], np.int8)
    shares = [
        next(CaptionBatches(inputs, [[[7]]] * 4, images_per_step=4, objects=labels, rank=r, world_size=2).epoch(0))
        for r in range(2)
    ]
    for share in shares:
        assert share.num_labelled == 3
        assert share.objects is not None
        assert share.objects.tolist() == labels[share.images].tolist()
