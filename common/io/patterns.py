"""Regular expressions from files and configs, matched in bounded time with exactly Python's own rules."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.io.bounded import run_bounded
from common.io.terminal import printable

LONGEST = 10_000  # characters of a pattern
SCRIPT = Path(__file__).with_name("match_patterns.py")


def full_matches(patterns: Sequence[str], texts: Sequence[str], where: str) -> list[list[bool]]:
    """For each pattern, whether it matches each text whole (`re.fullmatch`). Raises UserError beginning with `where`.

    That is, for what is not a regular expression, and for one that backtracks too long.
    """
    for pattern in patterns:
        if len(pattern) > LONGEST:
            raise UserError(f"{where}: a pattern of {len(pattern):,} characters; expected at most {LONGEST:,}")
    if not patterns:
        return []
    shown = ", ".join(printable(repr(pattern), 80) for pattern in patterns[:3])
    found = run_bounded(SCRIPT, [[pattern, list(texts)] for pattern in patterns], f"{where}: matching {shown}")
    for pattern, answer in zip(patterns, found, strict=True):
        if "error" in answer:
            raise UserError(
                f"{where}: {printable(repr(pattern))} is not a valid regular expression ({printable(answer['error'])})"
            )
    return [answer["matches"] for answer in found]
