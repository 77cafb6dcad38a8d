"""The caption tokenizer, used for the vocabulary, training and metrics.

Its output equals that of the standard evaluation code (pycocoevalcap): Stanford's PTBTokenizer (CoreNLP 3.4.1,
`-preserveLines -lowerCase`) followed by removal of its punctuation list. Metrics change by several percent with the
tokenizer, so it is part of every score. A model trained on the same tokens wastes no probability on tokens that cannot
occur in a reference. The tokenizer is one regular expression and needs neither Java nor a second process.

Verified on every caption of Flickr8k and on a sample of COCO, with and without spaces before punctuation. Known
differences, all of them rare in captions:

- a caption that ends in a single letter and a full stop ("vitamin C."): the original chooses between "c" and "c."
  depending on the first word of the *next caption in the file*; here, captions are independent;
- tokens that contain a space in the original (phone numbers, HTML tags) are several tokens here, as they are for the
  metrics, which split at spaces;
- numeric HTML entities, decomposed accents (NFD), superscript digits, emoticons such as ^_^, words joined by signs, and
  low quotation marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Abbreviations that keep their full stop, in any case; with a capital only; and before a number only.
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf
    cie cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
    ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md
    messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc
    ph.d ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq
    sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
"""
_CAPITALISED_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
_NUMBERED_ABBREVIATIONS = "art ca fig figs no nos op pp prop"

# Before one of these, a letter with a full stop ends a sentence and is not an initial ("plan b. He went").
_SENTENCE_STARTS = """
    A About After An As At But He Her Here However If In It Last Many More Now Once One Other Our She
    Since So Some That The Their Then There These They This We What When While Yet You
"""


def _one_of(words: str) -> str:
    """A regular expression for any of the words, the longest first."""
    return "(?:" + "|".join(re.escape(word) for word in sorted(words.split(), key=len, reverse=True)) + ")"


_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_WORD = rf"{_ALNUM}+(?:_{_ALNUM}+)*"
_APOSTROPHE = "['\u2019]"
_CLITIC = rf"(?:(?<!')'(?:s|m|d|re|ve|ll)(?!{_LETTER})|\u2019(?:s|m|d|re|ve|ll))"
_NOT = rf"n['`\u2019]t(?!{_LETTER})"
_WORD_ENDS = r"(?!\w|[-./!?@'\u2019]\w)"
_INITIALS = r"[a-z](?:\.[a-z])+\."
_HYPHENS = "[-\u2010\u2011]"

# The original takes the longest match; here the alternatives are tried in order, the longer ones first.
_TOKEN = re.compile(
    rf"""
    # The common case: a plain word and a space.
      (?!(?:cannot|gonna|gotta|wanna|lemme|gimme)\b){_LETTER}{{2,}}(?=[\s,])

    # Beginning with a letter or a digit:
    | (?=\w)(?:
        # addresses;
          (?:https?://|www\.)[^\s"'<>()]*[^\s"'<>().,;:!?]
        | (?:{_ALNUM}+[-.])+(?:com|net|org|edu)/[^\s"'<>()]*[^\s"'<>().,;:!?]
        | {_ALNUM}[^\s"<>|()@]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().]+
        # an apostrophe inside the word;
        | (?!{_LETTER}+'(?:s|m|d|re|ve|ll)(?!{_LETTER}))(?:
            [dlo]{_APOSTROPHE}{_LETTER}{{2,}}(?:{_HYPHENS}{_WORD})*
          | (?:n|(?-i:[A-HJ-NP-XZ])){_APOSTROPHE}{_LETTER}{{2,}}
          | {_LETTER}+[aeiouy]'(?:[aeiou]|(?-i:[A-Z])){_LETTER}*
          | {_LETTER}+[aeiouy]\u2019[aeiou]{_LETTER}*
          | c'mon | cap{_APOSTROPHE}n | li{_APOSTROPHE}l | ev{_APOSTROPHE}ry | nat{_APOSTROPHE}l
          | s{_APOSTROPHE}mores | nor{_APOSTROPHE}easter | (?:dunkin|somethin){_APOSTROPHE}
          | (?:[jy]|ol){_APOSTROPHE}(?!s|ll|re|ve)(?={_LETTER}) | [dl]{_APOSTROPHE}(?={_LETTER}(?!{_LETTER})))
        # an apostrophe that splits a word: dog 's, do n't;
        | {_LETTER}+(?={_CLITIC}) | (?:[a-z]*[a-mo-z])(?=n['`\u2019]t) | {_NOT}
        # a full stop before a comma, which the original takes for an abbreviation's;
        | {_WORD}(?:{_HYPHENS}{_WORD})*\.(?=[,;:]) | {_LETTER}+\.(?:-{_WORD})+
        # two words written as one;
        | (?:can(?=not{_WORD_ENDS}) | gon(?=na{_WORD_ENDS}) | got(?=ta{_WORD_ENDS})
            | wan(?=na{_WORD_ENDS}) | lem(?=me{_WORD_ENDS}) | gim(?=me{_WORD_ENDS}))
        # initials and abbreviations with their full stops;
        | (?:{_WORD}-)*{_INITIALS}(?!{_LETTER})(?:-(?:{_INITIALS}|{_WORD}))*
        | {_one_of(_ABBREVIATIONS)}\.(?!{_LETTER})
        | (?!(?-i:[a-z])){_one_of(_CAPITALISED_ABBREVIATIONS)}\.(?!{_LETTER})
        | {_one_of(_NUMBERED_ABBREVIATIONS)}\.(?=\s*\d)
        | [a-z]\.(?!{_LETTER}|\s+(?-i:{_one_of(_SENTENCE_STARTS)})(?:\s|$))
        # letters with signs: at&t (capitals only), c++, us$;
        | (?-i:[A-Z]+(?:[&+][A-Z]+)+) | c\+\+ | [cf]\# | (?-i:[A-Z]+)\$
        # words joined by full stops, slashes or hyphens; numbers.
        | {_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+(?:{_HYPHENS}{_WORD})*
        | {_ALNUM}+(?:-{_LETTER}+){{,2}}(?:/{_ALNUM}+(?:-{_LETTER}+){{,2}}){{1,2}}
        | \d+-\d+/\d+(?!\w) | \d+(?:[.,]\d+)+(?:{_HYPHENS}{_WORD})+ | \d+(?:[.,:]\d+)+
        | {_WORD}(?:{_HYPHENS}(?:[dlo]{_APOSTROPHE}{_LETTER}{{2,}}|{_WORD}))*
        | _+)

    # Beginning with an apostrophe.
    | {_APOSTROPHE}n{_APOSTROPHE} | {_APOSTROPHE}(?:em|cause|til) | {_APOSTROPHE}n(?![\w-]) | 't(?=is|was)
    | {_APOSTROPHE}(?:\d0s|\d\d(?![\w.'\u2019-])) | {_CLITIC}

    # Numbers with a sign, smileys, tags, and the signs that are not on the list of punctuation.
    | (?:(?<!-)[+-])?(?:\d+(?:[.,:]\d+)+ | (?<!\.\.)(?:[.,:]\d+)+) | (?<!-)[+-]\d+
    | [<>]?[:;=]['o*-]?(?:[()\[\]{{|\\dp0]|(?-i:O))(?!\w)
    | -[lr][rcs]b- | </?[a-z][^\s<>'=]*> | \#{_LETTER}+ | @(?!\d)\w+
    | [!?]{{2,}} | -{{5,}} | \*+ | \#+ | @+ | <+ | >+
    | [^\s\w.,:;!?'"`\-\u2010-\u201e\u2026\xab\xbb\xad\u2039\u203a\ufe0f\ufeff\U00010000-\U0010ffff]
    """,
    re.VERBOSE | re.IGNORECASE,
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_REWRITTEN = _BRACKETS | {f"\u2019{clitic}": f"'{clitic}" for clitic in ("s", "m", "d", "re", "ve", "ll")}
_REWRITTEN |= {eyes + mouth: eyes + _BRACKETS[mouth] for eyes in (":", ":-", ";", ";-", "=") for mouth in "()"}
_REWRITTEN |= {"n\u2019t": "n't", "\xa3": "#", "\u20ac": "$", "\xa2": "cents"}
_FRACTIONS = str.maketrans({"\xbc": " 1/4 ", "\xbd": " 1/2 ", "\xbe": " 3/4 ", "\u2153": " 1/3 "})

_ENTITIES = (("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"))


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words without punctuation. Clitics are words ("don't" is `do n't`).

    Brackets become `-lrb-` and `-rrb-`: the original's removal list contains them in capitals only.
    """
    if not caption.isascii():
        caption = caption.translate(_FRACTIONS)
    if "&" in caption:
        for entity, character in _ENTITIES:
            caption = caption.replace(entity, character)
    return [_REWRITTEN.get(token, token) for token in map(str.lower, _TOKEN.findall(caption + " "))]


_JOINED_LEFT = re.compile(r" (n['`]t\b|'(?:s|m|d|re|ve|ll)\b|[)\]}%])")
_JOINED_RIGHT = re.compile(r"([(\[{]|[$#](?= \d)|\by'(?= all\b)) ")
_SPLIT_WORDS = re.compile(r"\b(can|gon|got|wan|lem|gim) (not|na|ta|me)\b")


def detokenize(tokens: Iterable[str]) -> str:
    """Join words to a readable caption, with clitics attached and brackets restored.

    This is not the inverse of `tokenize`: case and punctuation are lost.
    """
    text = " ".join(tokens)
    for bracket, name in _BRACKETS.items():
        text = text.replace(name, bracket)
    text = _JOINED_LEFT.sub(r"\1", text)
    text = _JOINED_RIGHT.sub(r"\1", text)
    return _SPLIT_WORDS.sub(r"\1\2", text)
