"""What counts as a token in each language.

English: whatever white space separates, as is; neither lower-cased nor stripped of punctuation. Chinese: every
character by itself, punctuation included, but a run of ASCII letters and digits, decimals included, stays whole ("OCT",
"0.6"); words from jieba are the named alternative.
"""

import logging
import re
from typing import Literal

Language = Literal["en", "zh"]

_CHARACTERS = re.compile(r"[A-Za-z0-9]+(?:\.[0-9]+)*|\S")


def characters(text: str) -> list[str]:
    """Chinese tokens: single characters, with runs of ASCII letters and digits whole."""
    return _CHARACTERS.findall(text)


def jieba_words(text: str) -> list[str]:
    """Chinese tokens: words as jieba segments them, without white space."""
    import jieba

    jieba.setLogLevel(logging.WARNING)  # jieba announces its dictionary on standard error otherwise
    return [word for word in jieba.cut(text) if not word.isspace()]
