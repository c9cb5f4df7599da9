"""Rules that a pseudo-labelled pair must keep: its standard report says what its source says (RetSTA, section 2.3).

The paper filters "entries containing obvious logical conflicts or terminology errors". A rule here compares what the
terminology finds in both texts, so it is as good as the terminology: rules do not see what the terminology does not
recognise.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.data.records import Language, ReportPair
from common.metrics.tokenize import language_of
from retsta_jax.labelling.duplicates import normalized
from retsta_jax.terminology.matching import Match, Statement, find_terms, statements_of
from retsta_jax.terminology.terms import Terminology
from retsta_jax.terminology.uncovered import uncovered

MOST_UNREAD = 0.15  # of the letters of a standard report, outside the terminology
NUMBER = re.compile(r"\d+(?:\.\d+)?")
RATIO = re.compile(r"(?:c/d|cdr|杯盘比|盘比|cup[- ]to[- ]disc[a-z ]*|cup to disc)[^\d.;。,，]{0,12}(\d+(?:\.\d+)?)")


class Judgement(NamedTuple):
    """The names of the rules that a pair breaks, in the order of the judge's, and what its standard report states.

    Of two pairs whose `states` differ, neither stands for the other.
    """

    broken: list[str]
    states: Hashable


class Judge(NamedTuple):
    """What decides which labelled pairs are kept.

    `rules` are the names of its rules; `judge` tells of a pair, and whether its report is complete (the model did not
    hit its limit), how it does by them.
    """

    rules: tuple[str, ...]
    judge: Callable[[ReportPair, bool], Judgement]


@dataclass(frozen=True)
class Reading:
    """A pair as the terminology reads it."""

    pair: ReportPair
    source: frozenset[Statement]
    target: frozenset[Statement]
    source_matches: tuple[Match, ...]
    target_matches: tuple[Match, ...]
    complete: bool


def read_pair(pair: ReportPair, terms: Terminology, complete: bool = True) -> Reading:
    """Both texts of a pair, read in its language; `complete` is false where the model hit its limit."""
    source, target = (tuple(find_terms(text, terms, pair.language)) for text in (pair.source, pair.target))
    return Reading(pair, statements_of(source, terms), statements_of(target, terms), source, target, complete)


def broken_rules(reading: Reading, terms: Terminology) -> list[str]:
    """The names of the rules of RULES that a pair breaks, in their order; an empty list for a pair to keep."""
    return [name for name, holds in RULES.items() if not holds(reading, terms)]


def judge_by_terms(terms: Terminology) -> Judge:
    """The judge of reports in words: RULES. A pair states its findings, and all of its standard report."""

    def judge(pair: ReportPair, complete: bool) -> Judgement:
        reading = read_pair(pair, terms, complete)
        return Judgement(broken_rules(reading, terms), (reading.target, normalized(pair.target)))

    return Judge(tuple(RULES), judge)


def shares_broken(pairs: Sequence[ReportPair], judge: Judge) -> dict[str, float]:
    """How often each rule rejects these pairs, which are known to be right: what a rule costs."""
    broken = Counter(name for pair in pairs for name in judge.judge(pair, True).broken)
    return {name: broken[name] / max(len(pairs), 1) for name in judge.rules}


def _is_complete(reading: Reading, terms: Terminology) -> bool:
    return reading.complete


def _has_statement(reading: Reading, terms: Terminology) -> bool:
    return bool(reading.target)


def _is_one_language(reading: Reading, terms: Terminology) -> bool:
    """In the language of the source, without a word of the other that is not a term."""
    text = reading.pair.target
    if any(map(str.isalpha, text)) and language_of(text) != reading.pair.language:
        return False
    rest = uncovered(text, reading.target_matches)
    return not re.search(FOREIGN[reading.pair.language], rest)


FOREIGN: Mapping[Language, str] = {"zh": "[a-z]{4,}", "en": "[一-鿿]"}


def _is_consistent(reading: Reading, terms: Terminology) -> bool:
    """No finding is both there and not there, none excludes another in its eye, and nothing is beside a normal eye."""
    statuses: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    present: defaultdict[str, list[str]] = defaultdict(list)
    for term, eye, status in reading.target:
        statuses[term, eye].add(status)
        if status != "absent":
            present[eye].append(term)
    if any(len(found) > 1 for found in statuses.values()):
        return False
    for ids in present.values():
        found = [terms.by_id[id_] for id_ in ids]
        if any(one.keys & other.keys for index, one in enumerate(found) for other in found[:index]):
            return False
        kinds = {term.kind for term in found}
        if "normal" in kinds and kinds & {"diagnosis", "sign"}:
            return False
    return True


def _differences(reading: Reading) -> tuple[set[Statement], set[Statement]]:
    """(added, lost): what only the target says, and what only the source says."""
    return set(reading.target - reading.source), set(reading.source - reading.target)


def _eyes_of(statements: Iterable[Statement], term: str) -> set[str]:
    return {statement.eye for statement in statements if statement.term == term}


def _keeps_eyes(reading: Reading, terms: Terminology) -> bool:
    """A finding that both texts have is in no eye of the target where the source has it in none."""
    added, _ = _differences(reading)
    return not any(
        (eyes := _eyes_of(reading.source, statement.term)) and statement.eye and statement.eye not in eyes
        for statement in added
    )


def _names_eyes(reading: Reading, terms: Terminology) -> bool:
    """A finding whose eye the source names has it in the target, too."""
    return not any(
        not statement.eye and _eyes_of(reading.source, statement.term) - {""} for statement in reading.target
    )


def _keeps_certainty(reading: Reading, terms: Terminology) -> bool:
    """What is there, suspected or denied in the source is not something else in the target."""
    known = {(statement.term, statement.eye): statement.status for statement in reading.source}
    return not any(
        (term, eye) in known and Statement(term, eye, status) not in reading.source
        for term, eye, status in reading.target
    )


def _adds_nothing(reading: Reading, terms: Terminology) -> bool:
    known = {statement.term for statement in reading.source}
    return not any(statement.term not in known for statement in reading.target)


def _loses_nothing(reading: Reading, terms: Terminology) -> bool:
    """Every finding of the source is in the target, in each of its eyes."""
    return not any(
        statement.eye not in (eyes := _eyes_of(reading.target, statement.term)) and "" not in eyes
        if statement.eye
        else not _eyes_of(reading.target, statement.term)
        for statement in reading.source
    )


def _keeps_degrees(reading: Reading, terms: Terminology) -> bool:
    """The degrees and places of the target are those of the source."""

    def qualifiers(matches: Iterable[Match]) -> set[str]:
        return {match.term for match in matches if terms.by_id[match.term].kind in ("severity", "location")}

    return qualifiers(reading.target_matches) <= qualifiers(reading.source_matches)


def _keeps_numbers(reading: Reading, terms: Terminology) -> bool:
    """The target has no number of its own, and every cup-to-disc ratio of the source."""
    source, target = (
        unicodedata.normalize("NFKC", text).lower() for text in (reading.pair.source, reading.pair.target)
    )
    rest = list(reading.pair.target)
    for match in reading.target_matches:  # "stage 3" may be "III期" in the source
        rest[match.start : match.end] = " " * (match.end - match.start)
    own = Counter(NUMBER.findall(unicodedata.normalize("NFKC", "".join(rest))))
    known = Counter(NUMBER.findall(source))
    return own.keys() <= known.keys() and set(RATIO.findall(source)) <= set(NUMBER.findall(target))


def _is_in_terms(reading: Reading, terms: Terminology) -> bool:
    letters = sum(map(str.isalpha, reading.pair.target))
    unread = sum(map(str.isalpha, uncovered(reading.pair.target, reading.target_matches)))
    return unread <= MOST_UNREAD * letters


RULES: Mapping[str, Callable[[Reading, Terminology], bool]] = {
    "cut off": _is_complete,
    "states nothing": _has_statement,
    "mixed language": _is_one_language,
    "contradiction": _is_consistent,
    "wrong eye": _keeps_eyes,
    "missing eye": _names_eyes,
    "certainty changed": _keeps_certainty,
    "finding added": _adds_nothing,
    "finding lost": _loses_nothing,
    "degree or place changed": _keeps_degrees,
    "number changed": _keeps_numbers,
    "outside the terminology": _is_in_terms,
}
