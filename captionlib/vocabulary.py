"""The vocabulary: maps the words of tokenised captions to the ids that decoders use, and back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from captionlib.errors import UserError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>")


class Vocabulary:
    """Words with ids from 0; the first four are special.

    Args:
        words: all words in the order of their ids, special words first.
    """

    def __init__(self, words: Sequence[str]) -> None:
        strange = [word for word in words if not isinstance(word, str) or not word]
        if strange:
            raise UserError(f"words of a vocabulary must be text, and not empty, got {strange[0]!r}")
        if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
            raise UserError(f"a vocabulary begins with {SPECIAL_WORDS}, this one with {tuple(words[:4])}")
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            repeated = [word for word, count in Counter(self.words).items() if count > 1]
            raise UserError(f"words that occur twice in the vocabulary: {repeated[:5]}")

    @classmethod
    def build(cls, captions: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Collect the words of tokenised captions, the most frequent first and equally frequent ones in alphabetical
        order.

        Args:
            min_count: rarer words are omitted and encoded as `<unk>`.
            max_size: maximum number of words, including the special ones.

        Raises:
            UserError: no word remains.
        """
        counts = Counter(word for caption in captions for word in caption)
        frequent = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS]
        frequent.sort(key=lambda word: (-counts[word], word))
        words = [*SPECIAL_WORDS, *frequent][:max_size]
        if len(words) <= len(SPECIAL_WORDS):
            raise UserError(
                f"the vocabulary would be empty: {len(frequent)} words occur at least {min_count} times, and "
                f"max_size {max_size} counts the {len(SPECIAL_WORDS)} special ones"
            )
        return cls(words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Convert words to ids, unknown words to that of `<unk>`; `<bos>` and `<eos>` are not added."""
        return [self._ids.get(token, UNK) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Convert ids to words up to the first `<eos>`, without `<bos>` and `<pad>`."""
        words = []
        for index in ids:
            if index == EOS:
                break
            if index not in (PAD, BOS):
                words.append(self.words[index])
        return words

    def save(self, path: str | Path) -> None:
        """Write as JSON: {"words": [...]} in the order of the ids."""
        Path(path).write_text(json.dumps({"words": self.words}, ensure_ascii=False, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read the file that `save` wrote.

        Raises:
            UserError: the file has another format.
        """
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("words"), list):
            raise UserError('expected {"words": [...]}')
        return cls(data["words"])
