"""Whether a translated report says what its original says: terms, eyes, certainty, degrees, places and numbers.

RetSTA, section 2.3, mentions "terminology consistency checks" without details. Here the terminology reads both
texts: each mention of a term must have its counterpart, with the same eye and certainty, as often.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from common.data.records import Language, ReportPair
from retsta_jax.labelling.filters import NUMBER
from retsta_jax.terminology.matching import Match, Statement, find_terms
from retsta_jax.terminology.search import fold
from retsta_jax.terminology.terms import Term, Terminology
from retsta_jax.translation.phrase_table import entries_at, entry_of

Part = Literal["source", "target", "pair"]

NAMES: dict[Language, str] = {"zh": "Chinese", "en": "English"}
CHINESE = re.compile("[㐀-鿿]")
ENGLISH = re.compile("[a-zA-Z]{4,}|(?<![a-zA-Z])(?:no|not|nil|and|or|the|of|in|at|has|is|are|eye|as)(?![a-zA-Z])")
# Latin letters that Chinese reports have as well: units, marks of what was removed, and tests.
UNTRANSLATED = re.compile(r"mm ?hg|mmol|x{3,}|hba1c|logmar|oct[a-z]?|erg", re.IGNORECASE)
STORAGE = re.compile(r"<br ?/?>|&nbsp;|_x000d_|\|\|", re.IGNORECASE)  # marks that an export left
MISREAD = re.compile("(?<=[a-zA-Z])[0-9](?=[a-zA-Z])")  # a digit within a word: "correlati0n"
EYES = {"": "no eye named", "right": "right eye", "left": "left eye", "both": "both eyes"}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a translated text. `detail` names terms of the terminology and nothing else of a report."""

    part: Part
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.part}: {self.kind}" + (f" ({self.detail})" if self.detail else "")


class _Read(NamedTuple):
    """A text as it is compared. degrees and numbers are in the order of the text."""

    text: str
    matches: list[Match]
    statements: Counter[Statement]
    degrees: list[str]
    places: Counter[str]
    numbers: list[str]


class _Span(NamedTuple):
    """A place, a degree or a measure in a text; of two that begin together the longer one, whose `end` is less."""

    start: int
    end: int  # less than 0
    kind: str
    concept: str


def pair_problems(original: ReportPair, translated: ReportPair, terms: Terminology) -> list[Problem]:
    """What is wrong with a translated pair; an empty list where nothing is."""
    return [
        *text_problems("source", original.source, translated.source, original.language, translated.language, terms),
        *text_problems("target", original.target, translated.target, original.language, translated.language, terms),
    ]


def text_problems(
    part: Part, original: str, translated: str, language: Language, to: Language, terms: Terminology
) -> list[Problem]:
    """What is wrong with one translated text. In a target, a standard name must stay a standard name."""
    if not translated.strip():
        return [Problem(part, "no text")]
    before, after = _read(original, language, terms), _read(translated, to, terms)
    found = [*_statements(part, before, after, terms, to)]
    for kind, old, new in (("degrees", before.degrees, after.degrees), ("numbers", before.numbers, after.numbers)):
        if old != new:
            found.append(Problem(part, f"{kind} changed", f"{', '.join(new) or 'none'} for {', '.join(old) or 'none'}"))
    lost = [place for place in before.places - after.places if not (to == "en" and _is_named(place, translated))]
    added = [place for place in after.places - before.places if not (language == "en" and _is_named(place, original))]
    if lost or added:
        found.append(Problem(part, "places changed", f"{', '.join(added) or 'none'} for {', '.join(lost) or 'none'}"))
    if part == "target":
        found += _standard_names(before, after, terms, language, to)
    if not _is_in(after, to, terms):
        found.append(Problem(part, f"not all in {NAMES[to]}"))
    return found


def no_counterpart(text: str, language: Language, to: Language, terms: Terminology) -> list[str]:
    """Names of the terms of a text that have none in the other language."""
    ids = dict.fromkeys(match.term for match in find_terms(text, terms, language))
    return [terms.by_id[id_].name(language) for id_ in ids if not own_name(terms.by_id[id_], to)]


@functools.lru_cache(maxsize=16384)
def normal(name: str) -> str:
    """A name as names are compared."""
    return fold(name).text


def own_name(term: Term, language: Language) -> str:
    """The standard name in a language, "" where there is none."""
    return term.zh if language == "zh" else term.en


def in_words(statement: Statement, terms: Terminology, language: Language) -> str:
    """A statement for a message."""
    return f"{terms.by_id[statement.term].name(language)}, {EYES[statement.eye]}, {statement.status}"


def _read(text: str, language: Language, terms: Terminology) -> _Read:
    matches = find_terms(text, terms, language)
    stating = [match for match in matches if terms.by_id[match.term].states]
    rest = [*text]
    for match in matches:
        term = terms.by_id[match.term]
        if term.states or (term.kind == "anatomy" and not entry_of("site", normal(own_name(term, language)), language)):
            rest[match.start : match.end] = "\0" * (match.end - match.start)
    spans = [*_table_spans(text, "".join(rest), language)]
    for match in matches:
        term = terms.by_id[match.term]
        if term.kind in ("severity", "location"):
            kind = "degree" if term.kind == "severity" else "site"
            spans.append(_Span(match.start, -match.end, kind, _concept(term, kind, language)))
    places: Counter[str] = Counter()
    degrees: list[str] = []
    reached = 0
    for span in sorted(spans):
        if span.start >= reached:
            reached = -span.end
            if span.kind == "degree":
                degrees.append(span.concept)
            elif span.kind == "site":
                places[span.concept] += 1
    for match in matches:  # "stage 3" may be "III期"
        rest[match.start : match.end] = " " * (match.end - match.start)
    plain = MISREAD.sub("", UNTRANSLATED.sub(" ", unicodedata.normalize("NFKC", "".join(rest))))
    return _Read(
        text,
        matches,
        Counter(Statement(match.term, match.eye or "", match.status) for match in stating),
        degrees,
        places,
        NUMBER.findall(STORAGE.sub(" ", plain)),
    )


def _concept(term: Term, kind: str, language: Language) -> str:
    """What a place or degree is compared as: the row of the phrase table that says the same, or the term itself."""
    entry = entry_of(kind, normal(own_name(term, language)), language)
    return entry.row.written("en") if entry else term.name("en")


def _table_spans(text: str, rest: str, language: Language) -> Iterator[_Span]:
    """The degrees, sites and measures of the phrase table in the rest of a text."""
    folded = fold(rest)
    index = 0
    while index < len(folded.text):
        found = entries_at(text, folded, index, language, ("degree", "site", "measure"))
        for entry, end in found[:1]:
            yield _Span(folded.origin[index], -folded.origin[end - 1] - 1, entry.row.kind, entry.row.written("en"))
        index = found[0][1] if found else index + 1


def _is_named(place: str, english: str) -> bool:
    """Whether an English text names a place as an adjective ("peripheral"), which terminologies often leave out."""
    return normal(place).rstrip("aeiouy") in fold(english).text


def _statements(part: Part, before: _Read, after: _Read, terms: Terminology, to: Language) -> Iterator[Problem]:
    lost, added = before.statements - after.statements, after.statements - before.statements
    for statement in lost.elements():
        instead = [other for other in added.elements() if other.term == statement.term]
        if not instead:
            yield Problem(part, "term lost", in_words(statement, terms, to))
            continue
        other = min(instead, key=lambda one: (one.eye != statement.eye) + (one.status != statement.status))
        added[other] -= 1
        kind = "eye changed" if other.eye != statement.eye else "certainty changed"
        yield Problem(part, kind, f"{in_words(other, terms, to)} for {EYES[statement.eye]}, {statement.status}")
    for statement in added.elements():
        yield Problem(part, "term added", in_words(statement, terms, to))


def _standard_names(
    before: _Read, after: _Read, terms: Terminology, language: Language, to: Language
) -> Iterator[Problem]:
    """A term that the original always calls by its standard name, and the translation does not."""

    def others(read: _Read, spoken: Language) -> set[str]:
        return {
            match.term
            for match in read.matches
            if terms.by_id[match.term].states
            and normal(match.text) != normal(own_name(terms.by_id[match.term], spoken))
        }

    for id_ in sorted(others(after, to) - others(before, language)):
        yield Problem("target", "not the standard name", own_name(terms.by_id[id_], to))


def _is_in(read: _Read, language: Language, terms: Terminology) -> bool:
    """Whether nothing but names that the terminology has in a language is left of the other one."""
    rest = [*read.text]
    for match in read.matches:
        term = terms.by_id[match.term]
        names = (*term.forms(language), *term.abbreviations_zh, *term.abbreviations_en)
        if normal(match.text) in map(normal, names):
            rest[match.start : match.end] = " " * (match.end - match.start)
    text = unicodedata.normalize("NFKC", "".join(rest))
    if language == "en":
        return not CHINESE.search(text)
    return not ENGLISH.search(UNTRANSLATED.sub(" ", text))
