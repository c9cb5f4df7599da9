"""Rules for pseudo-labelled pairs whose standard report is a list of codes, such as those of Open-i.

The terminology consists of the codes of labelled pairs only, because the codes of other reports would reveal the
labels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from common.data.records import ReportPair
from retsta_jax.codes import heads, parse_codes
from retsta_jax.labelling.filters import Judge, Judgement

ALONE = frozenset({"normal", "No Indexing"})  # codes that stand alone in every report of Open-i that has them


class _Listed(NamedTuple):
    """The codes of a report, with the known ones and their heads."""

    codes: frozenset[str]
    complete: bool
    known: frozenset[str]
    known_heads: frozenset[str]


def judge_by_codes(pairs: Iterable[ReportPair]) -> Judge:
    """The judge of code lists: CODE_RULES, by the codes of these pairs. A pair states its codes."""
    known = frozenset(code for pair in pairs for code in parse_codes(pair.target))
    known_heads = heads(known)

    def judge(pair: ReportPair, complete: bool) -> Judgement:
        listed = _Listed(parse_codes(pair.target), complete, known, known_heads)
        return Judgement([name for name, holds in CODE_RULES.items() if not holds(listed)], listed.codes)

    return Judge(tuple(CODE_RULES), judge)


def _is_consistent(listed: _Listed) -> bool:
    """`normal` and `No Indexing` are beside no other code."""
    return len(listed.codes) < 2 or not listed.codes & ALONE


CODE_RULES: Mapping[str, Callable[[_Listed], bool]] = {
    "cut off": lambda listed: listed.complete,
    "states nothing": lambda listed: bool(listed.codes),
    "contradiction": _is_consistent,
    "head outside the terminology": lambda listed: heads(listed.codes) <= listed.known_heads,
    "outside the terminology": lambda listed: listed.codes <= listed.known,
}
