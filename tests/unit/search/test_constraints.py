import torch

from captionlib.config import SearchConfig
from captionlib.search.constraints import Constraints
from captionlib.vocabulary import BOS, EOS, PAD, UNK

NUM_WORDS = 9


def allowed(config: SearchConfig, *words: int) -> set[int]:
    """What may follow these words."""
    log_probs = torch.full((1, NUM_WORDS), -1.5)
    tokens = torch.tensor([[BOS, *words]])
    found = Constraints(config, tokens.device)(log_probs, tokens, len(words))
    assert torch.equal(log_probs, torch.full((1, NUM_WORDS), -1.5))  # the argument is left as it was
    kept = found[0] > -torch.inf
    assert set(found[0][kept].tolist()) == {-1.5}
    return set(kept.nonzero().flatten().tolist())


def test_special_words() -> None:
    everything = set(range(NUM_WORDS))
    assert allowed(SearchConfig()) == everything - {PAD, BOS, UNK}
    assert allowed(SearchConfig(allow_unk=True)) == everything - {PAD, BOS}


def test_no_early_end() -> None:
    config = SearchConfig(min_tokens=2)
    assert [EOS in allowed(config, *words) for words in ([], [4], [4, 4], [4, 4, 4])] == [False, False, True, True]


def test_no_late_end() -> None:
    config = SearchConfig(max_tokens=3, no_repeat_ngram=1)
    assert allowed(config, 4, 5) == {EOS, 6, 7, 8}
    assert allowed(config, 4, 5, 6) == {EOS}


def test_no_repeated_word() -> None:
    config = SearchConfig(no_repeat_ngram=1)
    assert allowed(config) == {EOS, 4, 5, 6, 7, 8}
    assert allowed(config, 4) == {EOS, 5, 6, 7, 8}
    assert allowed(config, 4, 7) == {EOS, 5, 6, 8}


def test_no_repeated_bigram() -> None:
    config = SearchConfig(no_repeat_ngram=2)
    assert allowed(config, 4) == {EOS, 4, 5, 6, 7, 8}
    assert allowed(config, 4, 5) == {EOS, 4, 5, 6, 7, 8}
    assert allowed(config, 4, 5, 4) == {EOS, 4, 6, 7, 8}  # not 4 5 again
    assert allowed(config, 4, 5, 4, 6, 4) == {EOS, 4, 7, 8}
    assert allowed(config, 4, 4) == {EOS, 5, 6, 7, 8}  # 4 4 4 has 4 4 twice


def test_no_repeated_trigram() -> None:
    config = SearchConfig(no_repeat_ngram=3)
    assert allowed(config, 4, 5, 6, 4, 5) == {EOS, 4, 5, 7, 8}
    assert allowed(config, 4, 5, 6, 5, 4) == {EOS, 4, 5, 6, 7, 8}


def test_each_row_has_its_own_ngrams() -> None:
    tokens = torch.tensor([[BOS, 4, 5, 4], [BOS, 5, 4, 5], [BOS, 6, 7, 8]])
    found = Constraints(SearchConfig(no_repeat_ngram=2), tokens.device)(torch.zeros(3, NUM_WORDS), tokens, 3)
    assert [[word for word in range(4, 9) if row[word] == -torch.inf] for row in found] == [[5], [4], []]
