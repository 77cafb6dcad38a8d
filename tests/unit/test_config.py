"""Settings: what is refused, with which words, and that nothing gets lost on the way through JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest

from captionlib.config import DecoderConfig, EncoderConfig, ModelConfig, Preprocessing, SearchConfig, from_dict, to_dict


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(
            encoder=EncoderConfig(
                kind="timm",
                name="vit",
                features="pooled",
                preprocessing=Preprocessing(size=96, square="pad", mean=(1.5, 2.5, 3.0)),
            ),
            decoder=DecoderConfig(kind="transformer", dropout=0),
        ),
        SearchConfig(method="sample", num_captions=5, top_p=0.9),
    ],
)
def test_through_json_and_back(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_a_default_is_taken_for_what_is_not_said() -> None:
    assert from_dict(SearchConfig, {"beam_width": 5}) == SearchConfig(beam_width=5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoder": {"nmae": "x"}}, r"model\.encoder: unknown setting 'nmae'; known: feature_dim, features, kind,"),
        ({"colour": 1}, "model: unknown setting 'colour'; known: decoder, detector, encoder"),
        ({"encoder": 3}, r"model\.encoder: expected a group of settings, got 3"),
        ({"encoder": {"kind": "torch"}}, r"model\.encoder\.kind: 'torch' is none of efficientnet_lite, torchvision"),
        ({"encoder": {"feature_dim": "9"}}, r"model\.encoder\.feature_dim: expected int, got '9'"),
        ({"encoder": {"feature_dim": True}}, r"model\.encoder\.feature_dim: expected int, got True"),
        ({"encoder": {"feature_dim": 0}}, r"encoder\.feature_dim must be at least 1, got 0"),
        ({"decoder": {"dropout": float("nan")}}, r"model\.decoder\.dropout: expected a finite number, got nan"),
        ({"decoder": {"dropout": 1}}, r"decoder\.dropout must be in \[0, 1\), got 1"),
        ({"decoder": {"projection_dim": -1}}, r"decoder\.projection_dim must not be negative, got -1"),
        ({"decoder": {"gate": 1}}, r"model\.decoder\.gate: expected bool, got 1"),
        ({"decoder": {"num_heads": None}}, r"model\.decoder\.num_heads: expected int, got None"),
        (
            {"encoder": {"preprocessing": {"mean": [1, 2]}}},
            r"model\.encoder\.preprocessing\.mean: expected a list of 3 values, got \[1, 2\]",
        ),
        (
            {"encoder": {"preprocessing": {"mean": "abc"}}},
            r"model\.encoder\.preprocessing\.mean: expected a list of 3 values, got 'abc'",
        ),
        (
            {"encoder": {"preprocessing": {"mean": [1, 2, "3"]}}},
            r"model\.encoder\.preprocessing\.mean\[2\]: expected float, got '3'",
        ),
        ({"encoder": {"preprocessing": {"std": [1, 0, 1]}}}, "preprocessing.std must be positive"),
        ({"encoder": {"preprocessing": {"size": 0}}}, "preprocessing.size must be at least 1 pixel, got 0"),
    ],
)
def test_what_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(ModelConfig, data, "model.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "beem"}, "search.method must be greedy, sample or beam, got 'beem'"),
        ({"beam_width": 0}, "search.beam_width must be at least 1, got 0"),
        ({"seed": -1}, "search.seed must not be negative, got -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "search.min_tokens 9 exceeds max_tokens 8"),
        ({"length_penalty": -0.1}, "search.length_penalty must not be negative, got -0.1"),
        ({"temperature": 0}, "search.temperature must be positive, got 0"),
        ({"top_p": 0}, r"search.top_p must be in \(0, 1\], got 0"),
        ({"method": "greedy", "num_captions": 2}, "use beam or sample"),
        ({"num_captions": 4}, "search.num_captions 4 exceeds beam_width 3: widen the beam"),
        ({"diversity_groups": 2}, "search.diversity_groups 2 must divide beam_width 3"),
    ],
)
def test_searches_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**settings)


@dataclass(frozen=True, kw_only=True)
class Group:
    """One of each kind of type."""

    needed: int
    maybe: int | None = None
    either: int | float = 0
    names: tuple[str, ...] = ()
    anything: Any = None


def test_kinds_of_types() -> None:
    group = from_dict(Group, {"needed": 1, "maybe": 2, "either": 0.5, "names": ["a", "b", "c"], "anything": {"x": []}})
    assert dataclasses.astuple(group) == (1, 2, 0.5, ("a", "b", "c"), {"x": []})
    assert from_dict(Group, {"needed": 1, "maybe": None}).maybe is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "file.yaml: needed must be set"),
        ({"needed": 1, "maybe": "2"}, r"file.yaml: maybe: expected int \| None, got '2'"),
        ({"needed": 1, "names": [1]}, r"file.yaml: names\[0\]: expected str, got 1"),
        ({"needed": 1, "other": 1}, "file.yaml: unknown setting 'other'"),
        ([], r"file.yaml: expected a group of settings, got \[\]"),
    ],
)
def test_messages_name_the_place(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Group, data, "file.yaml: ")


@pytest.mark.parametrize(
    ("search", "unused"),
    [
        (SearchConfig(method="greedy"), {"beam_width", "length_penalty", "temperature", "top_k", "top_p", "seed"}),
        (SearchConfig(method="beam"), {"temperature", "top_k", "top_p", "seed", "diversity_strength"}),
        (SearchConfig(method="beam", beam_width=4, diversity_groups=2), {"temperature", "top_k", "top_p", "seed"}),
        (SearchConfig(method="sample", num_captions=5), {"beam_width"}),
    ],
)
def test_what_a_search_does_not_use(search: SearchConfig, unused: set[str]) -> None:
    others = {"diversity_groups", "diversity_strength", "detector_weight"}
    assert set(search.unused()) - others == unused - others
    assert ("detector_weight" in search.unused()) == (search.method != "beam")
    assert ("diversity_strength" in search.unused()) == (search.diversity_groups == 1)


def test_searches_that_differ_in_unused_settings_only_are_the_same() -> None:
    greedy = SearchConfig(method="greedy", beam_width=8, length_penalty=0.65, no_repeat_ngram=2, seed=7)
    assert greedy.effective() == SearchConfig(method="greedy", no_repeat_ngram=2)
    beam = SearchConfig(method="beam", beam_width=8, length_penalty=0.65, temperature=0.5)
    assert beam.effective() == SearchConfig(method="beam", beam_width=8, length_penalty=0.65)
