"""Tokens and scores equal pycocoevalcap's. On a whole dataset: python -m tests.parity.metrics_on_dataset."""

import random

import pytest

from captionlib.metrics import score_captions
from captionlib.metrics.java import METEOR
from captionlib.text import tokenize
from tests.parity.metrics_on_dataset import TOLERANCE, differences
from tests.parity.reference_metrics import reference_tokens
from tests.unit.test_text import TOKENS

pytestmark = pytest.mark.parity

SUBJECTS = ["a man", "two dogs", "the boy's brother", "A woman (smiling)", "Three children", "Mr. Smith"]
VERBS = [
    "runs",
    "is running",
    "doesn't run",
    "plays",
    "jumps up",
    "cannot swim",
    "sits - or stands -",
    "sleeps",
]
PLACES = [
    "on grass",
    "in a T-shirt",
    "at 5 p.m.",
    "near the U.S. flag",
    'by the "STOP" sign',
    "and/or snow",
    "",
]
ENDS = [".", " .", "!", "", "...", " ;", "?!"]
# Put between the words of a caption, or glued to one.
WORDS = """
    5 10 1st 2:30 1,000 1.5 1/2 $5 Mr. St. U.S. a.m. P.M. T.V. can't cannot I'm don’t A's 80's '80s w/ b&w
    AT&T and/or é 'n' y'all www.foo.com re-use -- — – … ` “ ” < > & = # @
"""
MARKS = """' " - -- / & . .. ... , ; : ! ? ( ) # % * + = – — … @ ~ [ ] > | ^ ° © 's 'll st 5"""


def sentence(draw: random.Random) -> str:
    return f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(PLACES)}".strip() + draw.choice(ENDS)


def test_tokens_of_the_table() -> None:
    # Each before a line in lower case: the next line's first word decides about a single letter at the end.
    lines = [line for caption in TOKENS for line in (caption, "x x")]
    assert [tokenize(line) for line in lines] == reference_tokens(lines)


def test_tokens_of_sentences_with_something_put_in() -> None:
    draw = random.Random(0)
    inserted, glued = WORDS.split(), MARKS.split()
    captions = []
    for _ in range(3000):
        words = sentence(draw).split()
        place = draw.randrange(len(words))
        if draw.random() < 0.5:
            words.insert(place, draw.choice(inserted))
        else:
            mark = draw.choice(glued)
            words[place] = draw.choice([words[place] + mark, mark + words[place]])
        captions += [" ".join(words), "x x"]
    theirs = reference_tokens(captions)
    unequal = [
        (caption, tokens, tokenize(caption))
        for caption, tokens in zip(captions, theirs, strict=True)
        if tokenize(caption) != tokens
    ]
    assert unequal == []


def test_scores_of_a_made_up_corpus() -> None:
    draw = random.Random(0)
    references = {f"{number}.jpg": [sentence(draw) for _ in range(draw.randint(1, 6))] for number in range(200)}
    hypotheses = {key: sentence(draw) for key in references}
    hypotheses |= {
        "0.jpg": "",
        "1.jpg": "dog",
        "2.jpg": references["2.jpg"][0],
        "3.jpg": "... !",
        "4.jpg": "zebra " * 9,
    }
    largest = differences(hypotheses, references)
    assert len(largest) == 12
    assert max(largest.values()) <= TOLERANCE, largest


@pytest.mark.slow
def test_meteor_gives_the_images_their_scores() -> None:
    hypotheses = {"b.jpg": "a dog runs", "a.jpg": "zebra", "c.jpg": ""}
    references = {"a.jpg": ["a cat"], "b.jpg": ["a dog runs"], "c.jpg": ["a car"]}
    scores = score_captions(hypotheses, references, (METEOR,))
    found = {name: image["meteor"] for name, image in scores.images.items()}
    assert found == pytest.approx({"b.jpg": 1.0, "a.jpg": 0.0, "c.jpg": 0.0})
    assert 0 < scores.meteor < 1
