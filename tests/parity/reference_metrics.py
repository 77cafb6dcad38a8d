"""The field's evaluation code (pycocoevalcap, with Java), called as it is meant to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


def reference_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Stanford's tokens of each caption, without punctuation."""
    tokenized = PTBTokenizer().tokenize({number: [{"caption": caption}] for number, caption in enumerate(captions)})
    return [tokenized[number][0].split() for number in range(len(captions))]


def reference_scores(
    hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of the corpus by metric, and of every image by metric."""
    tokenizer = PTBTokenizer()
    results = tokenizer.tokenize({key: [{"caption": text}] for key, text in hypotheses.items()})
    truths = tokenizer.tokenize({key: [{"caption": text} for text in references[key]] for key in hypotheses})
    bleu, image_bleu = Bleu(4).compute_score(truths, results, verbose=0)
    rouge, image_rouge = Rouge().compute_score(truths, results)
    cider, image_cider = Cider().compute_score(truths, results)
    corpus = {f"bleu_{order}": float(bleu[order - 1]) for order in range(1, 5)}
    corpus |= {"rouge_l": float(rouge), "cider_d": float(cider)}
    columns = [*image_bleu, image_rouge, image_cider]
    images = {
        key: {name: float(column[row]) for name, column in zip(corpus, columns, strict=True)}
        for row, key in enumerate(truths)
    }
    return corpus, images
