"""The text that a terminology does not cover: neither a term nor a word of certainty, place or degree."""

import re
from collections.abc import Iterable

from retsta_jax.terminology.cues import FILLER_WORDS, TERM, TOKENS
from retsta_jax.terminology.matching import Match
from retsta_jax.terminology.search import fold


def uncovered(report: str, found: Iterable[Match]) -> str:
    """A report in normalised form without its terms and the words that say whether and where; "|" in their place."""
    characters = list(report)
    for match in found:
        characters[match.start : match.end] = TERM * (match.end - match.start)
    folded = fold("".join(characters)).text
    return re.sub(f"{TERM}+", "|", FILLER_WORDS.sub("|", TOKENS.sub("|", folded)))
