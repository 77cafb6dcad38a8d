"""The vocabulary: order of the words, what becomes of unknown ones, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captionlib.vocabulary import BOS, EOS, PAD, SPECIAL_WORDS, UNK, Vocabulary

CAPTIONS = [["a", "dog", "runs"], ["a", "cat"], ["the", "dog"]]


def test_most_frequent_first_then_by_the_alphabet() -> None:
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.words == [*SPECIAL_WORDS, "a", "dog", "cat", "runs", "the"]
    assert len(vocabulary) == 9


def test_rare_words_and_the_largest_size() -> None:
    assert Vocabulary.build(CAPTIONS, min_count=2).words[4:] == ["a", "dog"]
    assert Vocabulary.build(CAPTIONS, max_size=5).words[4:] == ["a"]


@pytest.mark.parametrize("options", [{"min_count": 3}, {"max_size": 4}])
def test_an_empty_vocabulary(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="the vocabulary would be empty"):
        Vocabulary.build(CAPTIONS, **options)


def test_special_words_in_captions_are_no_words() -> None:
    assert Vocabulary.build([["<unk>", "<eos>", "dog"]]).words == [*SPECIAL_WORDS, "dog"]


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.encode(["a", "zebra", "cat"]) == [4, UNK, 6]
    assert vocabulary.decode([BOS, 4, 6, PAD, UNK, EOS, 5]) == ["a", "cat", "<unk>"]
    assert "cat" in vocabulary
    assert "zebra" not in vocabulary


@given(st.lists(st.lists(st.text(min_size=1), min_size=1), min_size=1))
def test_known_words_come_back(captions: list[list[str]]) -> None:
    captions = [[word for word in caption if word not in SPECIAL_WORDS] or ["a"] for caption in captions]
    vocabulary = Vocabulary.build(captions)
    for caption in captions:
        assert vocabulary.decode(vocabulary.encode(caption)) == caption


def test_through_a_file_and_back(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([["naïve", "dog", "\u2028", "人"]])
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").words == vocabulary.words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "a vocabulary begins with"),
        ([*SPECIAL_WORDS, "a", "b", "a"], r"occur twice in the vocabulary: \['a'\]"),
        ([*SPECIAL_WORDS, 7], "must be text, and not empty, got 7"),
        ([*SPECIAL_WORDS, ""], "must be text, and not empty, got ''"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(words)


@pytest.mark.parametrize("data", [[], {"word": []}, {"words": "abc"}, {"words": None}])
def test_another_file(tmp_path: Path, data: object) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r'expected \{"words": \[\.\.\.\]\}'):
        Vocabulary.load(path)
