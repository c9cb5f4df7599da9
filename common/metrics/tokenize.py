"""What counts as a token in each language.

English: whatever white space separates, as is; neither lower-cased nor stripped of punctuation. Chinese: every
character by itself, punctuation included, but a run of ASCII letters and digits, decimals included, stays whole ("OCT",
"0.6"); words from jieba are the named alternative.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from common.errors import UserError
from common.io.terminal import printable

Language = Literal["en", "zh"]

# How the names of letters begin that the metrics can read; "µ" is MICRO, "ª" and "º" are ordinals.
KNOWN_LETTERS = ("LATIN", "FULLWIDTH LATIN", "CJK", "GREEK", "MICRO", "FEMININE", "MASCULINE")
_CHARACTERS = re.compile(r"[A-Za-z0-9]+(?:\.[0-9]+)*|\S")


def language_of(text: str) -> Language:
    """`zh` where a fifth of the letters or more are Chinese characters, else `en`."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum(unicodedata.name(character, "").startswith("CJK") for character in letters)
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


def unread_note(references: Sequence[str], languages: Sequence[Language]) -> str:
    """What to say of references that the metrics of their language cannot read; "" where there are none.

    Those of "en" know words between white space, in part of Latin letters alone; those of "zh" Chinese characters.
    """
    unread = sum(
        _in_another_script(text) or (language == "en" and language_of(text) == "zh")
        for text, language in zip(references, languages, strict=True)
    )
    if not unread:
        return ""
    return (
        f"{unread} of {len(references)} reports are not in the language or script that they are scored in: text "
        "metrics are for English and Chinese, and those of other scripts mean nothing"
    )


def _in_another_script(text: str) -> bool:
    """Whether a fifth of the letters or more are neither Latin nor Chinese, nor Greek, as in "α"."""
    names = [unicodedata.name(character, "") for character in text if character.isalpha()]
    foreign = sum(not name.startswith(KNOWN_LETTERS) for name in names)
    return foreign * 5 >= len(names) and foreign > 0


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
