"""A standard terminology: the terms of a specialty under all the names that reports give them (RetSTA, section 2.1).

The paper's 362 terms are not published. `terms.tsv` holds this project's own fundus terms, one a row, lists separated
by "|". A user's table may be CSV, TSV or JSON (a list of objects) with any of the same columns; it needs names in at
least one language, `zh` or `en`.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.data.records import Language
from common.errors import UserError
from common.io.jsonl import SURROGATE
from common.io.terminal import printable
from common.io.text import csv_rows, read_json

SHIPPED = Path(__file__).parent / "terms.tsv"
LANGUAGES: tuple[Language, ...] = ("zh", "en")
KINDS = ("normal", "diagnosis", "sign", "procedure", "quality", "anatomy", "location", "severity")
QUALIFIERS = ("anatomy", "location", "severity")  # kinds that say where and how much, and state nothing by themselves
CODES = {
    "icd11": re.compile(r"[0-9A-Z]{2}[0-9A-Z]{2}(\.[0-9A-Z]{1,2})?"),
    "icd10": re.compile(r"[A-Z][0-9][0-9A-Z](\.[0-9A-Z]{1,4})?"),
    "doid": re.compile(r"DOID:[0-9]+"),
    "hpo": re.compile(r"HP:[0-9]{7}"),
}
NAMES = ("synonyms", "abbreviations", "misspellings")  # each with _zh and _en
GENERATOR = ("frequency", "modifiers", "keys", "related")  # what the corpus generator reads
COLUMNS = (
    "id",
    "kind",
    "broader",
    *LANGUAGES,
    *(f"{name}_{language}" for name in NAMES for language in LANGUAGES),
    *CODES,
    "sources",
    *GENERATOR,
)


@dataclass(frozen=True)
class Term:
    """A term with its names and codes, and what a report may say about it.

    broader: id of a more general term, or "".
    modifiers: "severity", "ratio" (cup to disc), and the groups of sites ("quadrant", "region", "temporal").
    keys: two terms that share a key exclude each other in one eye; every term has its own id as a key.
    related: ids of the findings that the term goes along with.
    frequency: relative weight as the main finding of an eye; 0 where the generator has its own rule.
    """

    id: str
    kind: str = ""
    broader: str = ""
    zh: str = ""
    en: str = ""
    synonyms_zh: tuple[str, ...] = ()
    synonyms_en: tuple[str, ...] = ()
    abbreviations_zh: tuple[str, ...] = ()
    abbreviations_en: tuple[str, ...] = ()
    misspellings_zh: tuple[str, ...] = ()
    misspellings_en: tuple[str, ...] = ()
    codes: tuple[tuple[str, str], ...] = ()
    sources: str = ""
    frequency: int = 0
    modifiers: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    related: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)  # of the table

    def name(self, language: Language) -> str:
        """The standard name, or that of the other language where there is none."""
        return (self.zh or self.en) if language == "zh" else (self.en or self.zh)

    def synonyms(self, language: Language) -> tuple[str, ...]:
        """Its other names, abbreviations last."""
        if language == "zh":
            return self.synonyms_zh + self.abbreviations_zh
        return self.synonyms_en + self.abbreviations_en

    def forms(self, language: Language) -> tuple[str, ...]:
        """All that a report of the language may call it, the standard name first, misspellings last."""
        name, wrong = (self.zh, self.misspellings_zh) if language == "zh" else (self.en, self.misspellings_en)
        return tuple(filter(None, (name, *self.synonyms(language), *wrong)))

    @property
    def states(self) -> bool:
        """Whether a mention of the term states something; a place or a degree alone does not."""
        return self.kind not in QUALIFIERS


@dataclass(frozen=True)
class Terminology:
    """Terms in their standard order, and the languages that they have names in."""

    terms: tuple[Term, ...]
    languages: tuple[Language, ...] = LANGUAGES

    @functools.cached_property
    def by_id(self) -> Mapping[str, Term]:
        return {term.id: term for term in self.terms}

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:  # each text that is read looks for the automaton of its terminology
        return hash((self.terms, self.languages))


class Table(NamedTuple):
    """A terminology as read, before it is checked: problems of single cells, and columns of which nothing is known."""

    terms: tuple[Term, ...]
    languages: tuple[Language, ...]
    problems: list[str]
    ignored: list[str]


def read_table(path: str | Path) -> Table:
    """The terms of a CSV, TSV or JSON file. Raises UserError for a file that is no table of terms."""
    problems: list[str] = []
    rows = list(_json_rows(path) if Path(path).suffix.lower() == ".json" else _csv_rows(path))
    if not rows:
        raise UserError(f"{path}: contains no term; expected a header line and one term per line, or a list of objects")
    found = dict.fromkeys(name for _, row in rows for name in row)
    languages = tuple(language for language in LANGUAGES if language in found)
    if not languages:
        raise UserError(
            f"{path}: has neither a column zh nor en, but {printable(', '.join(found))}; expected names of terms in at "
            "least one of them, with commas between columns (CSV) or tabs (TSV)"
        )
    terms = tuple(_term(row, line, problems) for line, row in rows)
    return Table(terms, languages, problems, [name for name in found if name not in COLUMNS])


def normal_form(text: str) -> str:
    """How names are compared: letters of one case and width, hyphens as spaces, spaces regular."""
    folded = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[-‐-―−]", " ", folded).split())


def _csv_rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    remedy = "give every row a value for each column, or an empty one, and quotation marks at both ends of a value"
    rows = csv_rows(path, "\t" if Path(path).suffix.lower() == ".tsv" else ",", remedy)
    _, header = next(rows, (0, []))
    header = [name.strip().lower() for name in header]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{path}: column {printable(repeated[0])} occurs {header.count(repeated[0])} times; keep one")
    if not header:
        raise UserError(f"{path}: is empty; expected a header line and one term per line")
    for line, values in rows:
        yield line, dict(zip(header, values, strict=True))


def _json_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    expected = 'a list of terms, such as [{"id": ..., "zh": ..., "en": ...}]'
    content = read_json(path, expected)
    rows = content.get("terms") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected {expected}")
    for number, row in enumerate(rows, start=1):
        columns = {name.strip().lower(): value for name, value in row.items()}
        if len(columns) < len(row):
            raise UserError(f"{path}: term {number} has a column twice, in lower and upper case; keep one")
        yield number, columns


def _term(row: Mapping[str, Any], line: int, problems: list[str]) -> Term:
    def problem(text: str) -> None:
        problems.append(f"line {line}: {text}")

    def text(name: str) -> str:
        value = row.get(name)
        if value is None:
            return ""
        if not isinstance(value, str | int) or isinstance(value, bool):
            problem(f"{name} must be text, found {type(value).__name__}")
            return ""
        if SURROGATE.search(str(value)):
            problem(f"{name} holds an unpaired surrogate escape; expected Unicode text")
            return ""
        return " ".join(str(value).split())

    def items(name: str) -> tuple[str, ...]:
        value = row.get(name)
        if not isinstance(value, list):
            value = [] if text(name) in ("", "-") else text(name).split("|")
        if not all(isinstance(item, str) and not SURROGATE.search(item) for item in value):
            problem(f"{name} must be a list of texts, without unpaired surrogate escapes")
            return ()
        cleaned = [" ".join(item.split()) for item in value]
        if not all(cleaned):
            problem(f"{name} holds an empty entry")
        return tuple(filter(None, cleaned))

    codes = tuple((name, code) for name in CODES if (code := text(name)) not in ("", "-"))
    for name, code in codes:
        if not CODES[name].fullmatch(code):
            problem(f"{name} {printable(repr(code))} does not have the form of such a code")
    frequency = text("frequency") or "0"
    if not (frequency.isascii() and frequency.isdecimal()) or len(frequency) > 6:
        problem(f"frequency {printable(repr(frequency))}: expected a whole number from 0")
        frequency = "0"
    kind = text("kind").lower()
    if kind and kind not in KINDS:
        problem(f"kind {printable(repr(kind))} is unknown; expected {', '.join(KINDS)}, or nothing")
    id_ = text("id") or normal_form(text("en") or text("zh")).replace(" ", "_")
    names = {f"{name}_{language}": items(f"{name}_{language}") for name in NAMES for language in LANGUAGES}
    return Term(
        id=id_,
        kind=kind,
        broader=text("broader").removeprefix("-"),
        zh=text("zh"),
        en=text("en"),
        codes=codes,
        sources=text("sources"),
        frequency=int(frequency),
        modifiers=frozenset(items("modifiers")),
        keys=frozenset((id_, *items("keys"))),
        related=items("related"),
        line=line,
        **names,
    )
