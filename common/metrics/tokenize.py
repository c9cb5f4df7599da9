"""What counts as a token in each language.

English: whatever white space separates, as is; neither lower-cased nor stripped of punctuation. Chinese: every
character by itself, punctuation included, but a run of ASCII letters and digits, decimals included, stays whole ("OCT",
"0.6"); words from jieba are the named alternative.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from common.errors import UserError
from common.io.terminal import printable

Language = Literal["en", "zh"]

_CHARACTERS = re.compile(r"[A-Za-z0-9]+(?:\.[0-9]+)*|\S")


def language_of(text: str) -> Language:
    """`zh` where a fifth of the letters or more are Chinese characters, else `en`."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in letters)
    return "zh" if chinese * 5 >= len(letters) and chinese else "en"


def languages_of(rows: Sequence[Mapping[str, Any]]) -> list[Language]:
    """The language of rows with "prediction" and "reference": their own "language", else by the reference's characters.

    Where a reference has no letter the prediction says it, and where neither has one, the most frequent language of the
    other rows. Raises UserError for a "language" that is neither en nor zh.
    """
    found: list[Language | None] = []
    for row in rows:
        language = row.get("language")
        if language is not None and language not in get_args(Language):
            raise UserError(f"id {row.get('id')!r}: language is {printable(repr(language))}, expected en or zh")
        texts = (text for text in (row["reference"], row["prediction"]) if any(map(str.isalpha, text)))
        found.append(language or next(map(language_of, texts), None))
    known = Counter(language for language in found if language)
    usual = known.most_common(1)[0][0] if known else "en"
    return [language or usual for language in found]


def tokens_of(text: str, language: Language) -> list[str]:
    """The tokens of a text."""
    return text.split() if language == "en" else characters(text)


def characters(text: str) -> list[str]:
    """Chinese tokens: single characters, with runs of ASCII letters and digits whole."""
    return _CHARACTERS.findall(text)


def jieba_words(text: str) -> list[str]:
    """Chinese tokens: words as jieba segments them, without white space."""
    import jieba

    jieba.setLogLevel(logging.WARNING)  # jieba announces its dictionary on standard error otherwise
    return [word for word in jieba.cut(text) if not word.isspace()]
