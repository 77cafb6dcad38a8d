import pytest
from hypothesis import given
from hypothesis import strategies as st

from captionlib.text import detokenize, tokenize

# What pycocoevalcap drops.
PUNCTUATION = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"]

# The right-hand sides are the Stanford tokenizer's own, which tests/parity compares over again.
TOKENS = {
    "A dog runs .": "a dog runs",
    "Two men, one in red; both laughing!": "two men one in red both laughing",
    "": "",
    " ... ": "",
    # Clitics and words that are two.
    "The dog's ball isn't theirs": "the dog 's ball is n't theirs",
    "the dogs' owners": "the dogs owners",
    "they’re here, don’t you see": "they 're here do n't you see",
    "She cannot; he's gonna": "she can not he 's gon na",
    "y'all, 'tis the O'Neils' ma'am at 5 o'clock": "y' all 't is the o'neils ma'am at 5 o'clock",
    "a slip 'n' slide": "a slip 'n' slide",
    # Quotes and brackets.
    '"STOP" is on the “sign”': "stop is on the sign",
    "a child (smiling) [left]": "a child -lrb- smiling -rrb- -lsb- left -rsb-",
    # Hyphens, slashes, dashes, ellipses.
    "a black-and-white T-shirt": "a black-and-white t-shirt",
    "his/her dog - or cat -- at 24/7": "his/her dog or cat at 24/7",
    "wait... what… a–b": "wait what a b",
    "hello.world and 5.dog": "hello.world and 5 dog",
    # Full stops that stay.
    "Mr. and Mrs. Smith of St. Louis.": "mr. and mrs. smith of st. louis",
    "at 5 p.m. in the U.S.": "at 5 p.m. in the u.s.",
    "A boy in a U. Miami shirt": "a boy in a u. miami shirt",
    "plan B. He left": "plan b he left",
    "no. 5, a no.": "no. 5 a no",
    "Miss. is a state; a miss.": "miss. is a state a miss",
    "on the bench., next": "on the bench. next",
    # Numbers, money, signs.
    "1,000 dogs, 1/2 cat, 5:30pm, 10.5%": "1,000 dogs 1/2 cat 5:30 pm 10.5 %",
    "the '80s, 1990's": "the '80s 1990 's",
    "$5 or £5 or €5": "$ 5 or # 5 or $ 5",
    "player #28 & # 7 = *": "player # 28 & # 7 = *",
    "AT&T but b&w": "at&t but b & w",
    "really?! yes!!": "really ?! yes !!",
    # Addresses, letters beyond ASCII.
    "see http://a.org/b?c=1, www.a.com.": "see http://a.org/b?c=1 www.a.com",
    "a café, Señor ÉCLAIR 東京": "a café señor éclair 東京",
}


@pytest.mark.parametrize(("caption", "tokens"), TOKENS.items())
def test_tokens(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@given(st.text(st.sampled_from("abc ABCnt05.,:;!?'’\"`-()/&#$@_<>é\n"), max_size=40))
def test_tokens_hold_no_space_no_capital_and_no_punctuation(caption: str) -> None:
    tokens = tokenize(caption)
    assert not set(tokens) & {*PUNCTUATION, ""}
    assert " ".join(tokens).split() == tokens
    assert [token.lower() for token in tokens] == tokens


@pytest.mark.parametrize(
    ("tokens", "caption"),
    [
        ("a dog 's ball", "a dog's ball"),
        ("they do n't see that he 's here", "they don't see that he's here"),
        ("she can not swim", "she cannot swim"),
        ("a child -lrb- smiling -rrb- and # 5", "a child (smiling) and #5"),
        ("10 % of $ 5", "10% of $5"),
        ("y' all at 5 o'clock", "y'all at 5 o'clock"),
        ("", ""),
    ],
)
def test_detokenize(tokens: str, caption: str) -> None:
    assert detokenize(tokens.split()) == caption
