"""How scores are written: three decimals for people, six in JSON, and never with an exponent (1.99e-21).

BLEU without a matching 4-gram is such a number, an artefact of its additive constants, and means 0. Log-probabilities,
logits, token weights and the rows of a training log are data, and keep all their digits.
"""

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"  # in the place of a score that there is not


def score_text(value: float | None, decimals: int = 3, sign: bool = False) -> str:
    """A score as people read it; with a `sign` where it is a difference. What is not there or not finite is a dash."""
    if value is None or not math.isfinite(value):
        return NONE
    value = round(value, decimals) + 0.0  # no -0.000
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def interval_text(score: Mapping[str, float | None], sign: bool = False, decimals: int = 3) -> str:
    """`value [low, high]` of a score, without the brackets where there is no interval."""
    low, high = (score.get(end) for end in ("low", "high"))
    shown = score_text(score["value"], decimals, sign)
    if low is None or high is None or not math.isfinite(low + high):
        return shown
    return f"{shown} [{score_text(low, decimals, sign)}, {score_text(high, decimals, sign)}]"


def rounded(content: Any) -> Any:
    """Scores as they are written to JSON: every float in dictionaries and lists with six decimals at most.

    Below 0.0001, where JSON would be written with an exponent, with four.
    """
    if isinstance(content, Mapping):
        return {name: rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    if isinstance(content, float) and math.isfinite(content):
        value = round(content, 6)
        return (round(value, 4) if abs(value) < 1e-4 else value) + 0.0
    return content
