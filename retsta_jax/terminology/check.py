"""Checks of a terminology: the ambiguities and errors that `retsta terminology check` lists."""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.data.records import Language
from common.errors import UserError
from common.io.terminal import printable
from retsta_jax.terminology.cues import DENY_EN, DENY_ZH, TOKENS, any_of, words
from retsta_jax.terminology.terms import (
    CODES,
    LANGUAGES,
    NAMES,
    SHIPPED,
    Table,
    Term,
    Terminology,
    normal_form,
    read_table,
)

SAID = ("deny", "doubt", "absent", "present", "assert", "but", "and")  # of `cues.TOKENS`
DENIAL = re.compile(f"{any_of(DENY_ZH)}|{words(DENY_EN)}")


def load_terminology(path: str | Path = SHIPPED) -> Terminology:
    """A terminology without an error, the same object as long as its file is unchanged.

    Raises UserError that names the first error.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return _loaded(path, "", 0, 0)  # reading it says why not
    return _loaded(path, str(Path(path).absolute()), status.st_mtime_ns, status.st_size)


@functools.cache
def _loaded(path: str | Path, absolute: str, changed: int, size: int) -> Terminology:
    table = read_table(path)
    if errors := errors_of(table):
        raise UserError(
            f"{path}: {errors[0]} ({len(errors)} error{'s' * (len(errors) > 1)} in all: retsta terminology check "
            f"{path})"
        )
    return Terminology(table.terms, table.languages)


def errors_of(table: Table) -> list[str]:
    """What is wrong with a table, each as one line that names the rows."""
    found = [*table.problems]
    if not table.terms:
        found.append("contains no term; expected one per line")
    found += _names(table)
    found += _identities(table)
    for language in table.languages:
        found += _shared_forms(table, language)
    found += _shared_abbreviations(table)
    found += _links(table)
    return found


def summary_of(table: Table) -> dict[str, Any]:
    """The terms, names and codes of a table in numbers, and its errors."""
    return {
        "terms": len(table.terms),
        "errors": errors_of(table),
        "warnings": [
            line for language in table.languages for found in (_denials, _cues) for line in found(table, language)
        ],
        "languages": list(table.languages),
        "kinds": dict(Counter(term.kind or "none" for term in table.terms).most_common()),
        "names": {
            language: sum(len(set(term.forms(language))) for term in table.terms) for language in table.languages
        },
        "codes": {name: sum(name in dict(term.codes) for term in table.terms) for name in CODES},
        "ignored_columns": table.ignored,
    }


def _where(*terms: Term) -> str:
    lines = ", ".join(str(term.line) for term in terms)
    return f"line{'s' * (len(terms) > 1)} {lines}"


def _names(table: Table) -> Iterator[str]:
    for term in table.terms:
        for language in table.languages:
            if not getattr(term, language):
                yield f"{_where(term)}: no name in column {language}; every term needs one"
        for language in LANGUAGES:
            for name in ((language,) if language in table.languages else ()) + tuple(f"{n}_{language}" for n in NAMES):
                value = getattr(term, name)
                for text in (value,) if isinstance(value, str) else value:
                    if len(text) == 1 and text.isascii():
                        yield f"{_where(term)}: {name} {printable(repr(text))} is one letter; that may be anything"
                    if text and not any(character.isalnum() for character in text):
                        yield f"{_where(term)}: {name} {printable(repr(text))} has neither letter nor digit"


def _identities(table: Table) -> Iterator[str]:
    by_id: dict[str, Term] = {}
    for term in table.terms:
        first = by_id.setdefault(term.id, term)
        if first is not term and term.id:
            yield f"{_where(first, term)}: two terms with the id {printable(term.id)}"


def _shared_forms(table: Table, language: Language) -> Iterator[str]:
    """Names that belong to two terms, or stand twice at one."""
    owners: defaultdict[str, list[Term]] = defaultdict(list)
    for term in table.terms:
        for form in {normal_form(form) for form in term.forms(language)}:
            owners[form].append(term)
        for form, count in Counter(term.forms(language)).items():
            if count > 1:
                yield f"{_where(term)}: {printable(repr(form))} ({language}) stands {count} times"
    for form, terms in owners.items():
        if len(terms) > 1:
            standard = sum(normal_form(getattr(term, language)) == form for term in terms)
            what = "the name of two terms" if standard > 1 else "a name of two terms"
            ids = " and ".join(printable(term.id) for term in terms)
            yield f"{_where(*terms)}: {printable(repr(form))} ({language}) is {what}: {ids}"


def _denials(table: Table, language: Language) -> Iterator[str]:
    """Names that deny another term: "no retinopathy" may be a grade, but is read as none of that disease."""
    owners = {normal_form(form): term for term in table.terms for form in term.forms(language)}
    for form, term in owners.items():
        denied = next((form[match.end() :].strip() for match in [DENIAL.match(form)] if match), "")
        if denied in owners and owners[denied] is not term:
            yield (
                f"{_where(term, owners[denied])}: {printable(repr(form))} ({language}) denies "
                f"{printable(owners[denied].id)}, but is read as {printable(term.id)}"
            )


def _cues(table: Table, language: Language) -> Iterator[str]:
    """Names that are words by which reports deny, doubt or affirm: as a name of a term they do so no longer."""
    for term in table.terms:
        for form in term.forms(language):
            cue = TOKENS.fullmatch(normal_form(form))
            if cue is not None and cue.lastgroup in SAID:
                yield (
                    f"{_where(term)}: {printable(repr(form))} ({language}) is a word that says whether something is "
                    f"there, but is read as {printable(term.id)}"
                )


def _shared_abbreviations(table: Table) -> Iterator[str]:
    """Abbreviations that mean one term in Chinese reports and another in English ones: reports mix both."""
    owners: dict[str, Term] = {}
    for term in table.terms:
        for form in {normal_form(form) for form in term.abbreviations_zh + term.abbreviations_en}:
            first = owners.setdefault(form, term)
            in_one_language = any(
                form in map(normal_form, first.forms(language)) and form in map(normal_form, term.forms(language))
                for language in table.languages
            )
            if first is not term and not in_one_language:
                yield (
                    f"{_where(first, term)}: the abbreviation {printable(repr(form))} means {printable(first.id)} in "
                    f"one language and {printable(term.id)} in the other"
                )


def _links(table: Table) -> Iterator[str]:
    by_id = {term.id: term for term in table.terms}
    for term in table.terms:
        for name, ids in (("broader", (term.broader,) if term.broader else ()), ("related", term.related)):
            for id_ in ids:
                if id_ not in by_id:
                    yield f"{_where(term)}: {name} names {printable(repr(id_))}, which is not an id of this table"
    done: set[str] = set()
    for term in table.terms:
        path: list[Term] = []
        here: Term | None = term
        while here is not None and here.id not in done and here not in path:
            path.append(here)
            here = by_id.get(here.broader)
        if here is not None and here in path:
            cycle = path[path.index(here) :]
            yield f"{_where(*cycle)}: a cycle of broader terms: {' -> '.join(printable(t.id) for t in [*cycle, here])}"
        done |= {step.id for step in path}
