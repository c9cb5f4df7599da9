"""Semantic perturbation of a report pair (RetSTA, section 2.2): a finding denied, doubted or affirmed in both texts.

The target of known form is rendered from the changed findings, any other is edited as the source is. No perturbation
puts mutually exclusive findings into one eye, denies something that another finding implies, or doubts something that
a normal eye excludes.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from common.data.records import Language
from retsta_jax.augmentation.edits import Report, read_report, states
from retsta_jax.augmentation.restate import SOURCE_WORDING, add_statement, restate
from retsta_jax.corpus.findings import (
    EYES,
    Eye,
    Finding,
    FundusStudy,
    order_findings,
    parse_standard_report,
    standard_report,
)
from retsta_jax.corpus.fundus import MAX_FINDINGS, OFTEN_DENIED, choose
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import Match, MatchStatus, Statement, statements_of
from retsta_jax.terminology.terms import Terminology

SETTLED = ("normal", "procedure", "quality")  # kinds of terms that are neither denied nor doubted here
CHANGES: Mapping[str, Mapping[MatchStatus, tuple[MatchStatus, ...]]] = {
    "negation": {"present": ("absent",), "suspected": ("absent",), "absent": ("present",)},
    "probability": {"present": ("suspected",), "suspected": ("present",), "absent": ("suspected",)},
}

TargetWording = Mapping[Language, Mapping[MatchStatus, str]]


class Pair(NamedTuple):
    """The two texts of a pair; `findings` are those of a target in standard form, None of any other target."""

    source: Report
    target: Report
    findings: tuple[Finding, ...] | None


def read_pair(source: str, target: str, language: Language, terms: Terminology) -> Pair:
    """A pair with what is found in it."""
    findings = known_findings(target, language, terms)
    return Pair(read_report(source, language, terms), read_report(target, language, terms), findings)


def known_findings(target: str, language: Language, terms: Terminology) -> tuple[Finding, ...] | None:
    """The findings of a target in this project's standard form and terms, None of any other target."""
    if terms is not load_terminology():
        return None
    parsed = parse_standard_report(target, language)
    return None if parsed.unparsed or not parsed.findings else parsed.findings


def agrees(pair: Pair) -> bool:
    """Whether the terminology finds the same statements in both texts."""
    return _statements(pair.source) == _statements(pair.target)


def perturb(
    pair: Pair,
    kind: str,
    wording: TargetWording,
    rng: np.random.Generator,
    *,
    but: Iterable[str] = (),
    accepts: Callable[[str, str], bool] = lambda source, target: True,
) -> tuple[Pair, str] | None:
    """The pair with one finding stated otherwise in both texts, and the id of its term; None where none can be.

    `kind` is negation or probability, `but` are terms to leave alone, `wording` the words of a target of unknown form;
    `accepts` is asked of the new source and target.
    """
    if pair.findings is not None and not agrees(pair):
        return None
    options = [
        (index, status)
        for index, match in enumerate(pair.source.matches)
        if _may_change(pair.source, match) and match.term not in but
        for status in CHANGES[kind][match.status]
    ]
    if kind == "negation" and pair.findings is not None:
        options.append((-1, "absent"))
    for number in rng.permutation(len(options)):
        index, status = options[number]
        if pair.findings is None:
            new = _both_texts(pair, index, status, wording, rng)
        elif index < 0:
            new = _one_more_denial(pair, rng)
        else:
            new = _known_finding(pair, index, status, rng)
        if new is not None and accepts(new.source.text, new.target.text):
            changed = _statements(new.source) ^ _statements(pair.source)
            return new, min(statement.term for statement in changed)
    return None


def conflicts(statements: Iterable[Statement], terms: Terminology) -> set[tuple[Statement, Statement]]:
    """Pairs of statements about one eye that do not go together."""
    return {
        (one, other)
        for one, other in itertools.combinations(sorted(statements), 2)
        if one.eye == other.eye and _conflict(one, other, terms)
    }


def _conflict(one: Statement, other: Statement, terms: Terminology) -> bool:
    first, second = terms.by_id[one.term], terms.by_id[other.term]
    denied = [one.status, other.status].count("absent")
    if first.keys & second.keys:
        return True
    if denied == 2:
        return False
    if denied == 0:
        kinds = {first.kind, second.kind}
        return "normal" in kinds and not kinds <= set(SETTLED)
    absent, there = (first, second) if one.status == "absent" else (second, first)
    implied = {*there.related, *(term for term in _broader(there.id, terms))}
    return absent.id in implied or there.id in absent.related


def _broader(id_: str, terms: Terminology) -> Iterator[str]:
    while id_ := terms.by_id[id_].broader:
        yield id_


def _may_change(report: Report, match: Match) -> bool:
    return states(report, match) and report.terms.by_id[match.term].kind not in SETTLED


def _statements(report: Report) -> frozenset[Statement]:
    return statements_of(report.matches, report.terms)


def _adds_conflict(old: Iterable[Statement], new: Iterable[Statement], terms: Terminology) -> bool:
    return bool(conflicts(new, terms) - conflicts(old, terms))


# ---- targets of known form


def _known_finding(pair: Pair, index: int, status: MatchStatus, rng: np.random.Generator) -> Pair | None:
    """One finding, or that of both eyes where one mention states both, in another status."""
    assert pair.findings is not None
    match = pair.source.matches[index]
    own = [
        finding
        for finding in pair.findings
        if finding.term == match.term and match.eye in (finding.eye, "both") and finding.status == match.status
    ]
    if match.eye is None or len(own) != (2 if match.eye == "both" else 1):
        return None
    if status == "absent" and any(finding.severity or finding.site or finding.ratio for finding in own):
        return None  # nothing denied has a degree or a place in a standard report
    rest = [finding for finding in pair.findings if finding not in own]
    return _rendered(
        pair,
        [*rest, *(replace(finding, status=status) for finding in own)],
        functools.partial(restate, pair.source, index, status, SOURCE_WORDING[pair.source.language], rng),
    )


def _one_more_denial(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """A finding denied of which nothing was said."""
    assert pair.findings is not None
    report, findings = pair.source, pair.findings
    eye = choose(rng, [match.eye for match in report.matches] or [None])
    if eye is None:
        return None
    eyes: tuple[Eye, ...] = EYES if eye == "both" else (eye,)
    of_eyes = [[report.terms.by_id[finding.term] for finding in findings if finding.eye == one] for one in eyes]
    if any(len(terms) >= MAX_FINDINGS or {term.kind for term in terms} <= {"quality"} for terms in of_eyes):
        return None
    denials = SOURCE_WORDING[report.language]["absent"]
    for number in rng.permutation(len(OFTEN_DENIED)):
        term = report.terms.by_id[OFTEN_DENIED[number]]
        if any(term.id == other.id for terms in of_eyes for other in terms):
            continue
        name = choose(rng, (term.name(report.language), *term.synonyms(report.language)))
        edit = functools.partial(add_statement, report, (term.id, eye, "absent"), name, denials, rng)
        if new := _rendered(pair, [*findings, *(Finding(one, term.id, "absent") for one in eyes)], edit):
            return new
    return None


def _rendered(pair: Pair, findings: Iterable[Finding], edit: Callable[[], Report | None]) -> Pair | None:
    """The pair with these findings, where they go together and `edit` gives a source that states them."""
    language, terms = pair.target.language, pair.target.terms
    ordered = order_findings(findings)
    stated = {Statement(finding.term, finding.eye, finding.status) for finding in ordered}
    if _adds_conflict(_statements(pair.source), stated, terms) or (source := edit()) is None:
        return None
    target = read_report(standard_report(FundusStudy(ordered), language), language, terms)
    new = Pair(source, target, ordered)
    return new if _statements(source) == stated and agrees(new) else None


# ---- any other targets


def _both_texts(
    pair: Pair, index: int, status: MatchStatus, wording: TargetWording, rng: np.random.Generator
) -> Pair | None:
    """A statement that stands once in each text, stated otherwise in both."""
    match, language = pair.source.matches[index], pair.source.language
    if status not in wording[language]:
        return None
    indices = [_only_mention(report, match) for report in pair[:2]]
    if indices[0] != index or indices[1] is None:
        return None
    eyes = ("right", "left") if match.eye == "both" else (match.eye or "",)
    old = _statements(pair.source)
    new = old - {Statement(match.term, eye, match.status) for eye in eyes}
    new |= {Statement(match.term, eye, status) for eye in eyes}
    if _adds_conflict(old, new, pair.source.terms):
        return None
    source = restate(pair.source, index, status, SOURCE_WORDING[language], rng)
    target = source and restate(pair.target, indices[1], status, {status: (wording[language][status],)}, rng)
    return Pair(source, target, None) if source and target else None


def _only_mention(report: Report, match: Match) -> int | None:
    """The index of the one mention of a term, where it says what `match` does."""
    found = [index for index, other in enumerate(report.matches) if other.term == match.term]
    if len(found) != 1:
        return None
    only = report.matches[found[0]]
    return found[0] if (only.eye, only.status) == (match.eye, match.status) else None
