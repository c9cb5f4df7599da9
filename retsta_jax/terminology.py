"""The bilingual standard terminology of fundus reports that ships with the package (RetSTA, section 2.1).

The paper's 362 terms are not published. These are this project's own, named after ICD-11, the international
clinical diabetic retinopathy scale, META-PM and common use in reports, with the non-standard names that
reports use in their place. They live in `terminology.tsv`, one term a row, lists separated by "|", "-" for
an empty list.
"""

import functools
from dataclasses import dataclass
from importlib import resources

from common.data.records import Language
from common.errors import UserError
from common.io.text import decode_text

CATEGORIES = ("normal", "diagnosis", "sign", "procedure", "quality")
LANGUAGES: tuple[Language, ...] = ("zh", "en")


@dataclass(frozen=True)
class Term:
    """A standard term with its names in both languages and what a report may say about it.

    modifiers: "severity", "ratio" (cup to disc), and the groups of sites ("quadrant", "region", "temporal").
    keys: two terms that share a key exclude each other in one eye; every term has its own id as a key.
    related: ids of the findings that the term goes along with.
    frequency: relative weight as the main finding of an eye; 0 where the generator has its own rule.
    """

    id: str
    category: str
    frequency: int
    modifiers: frozenset[str]
    keys: frozenset[str]
    related: tuple[str, ...]
    zh: str
    en: str
    synonyms_zh: tuple[str, ...]
    synonyms_en: tuple[str, ...]

    def name(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en

    def synonyms(self, language: Language) -> tuple[str, ...]:
        return self.synonyms_zh if language == "zh" else self.synonyms_en


@functools.cache
def load_terminology() -> tuple[Term, ...]:
    """All terms in their standard order. Raises UserError naming the line of the first malformed row."""
    text = decode_text(resources.files("retsta_jax").joinpath("terminology.tsv").read_bytes(), "terminology.tsv")
    header, *rows = text.removesuffix("\n").split("\n")
    columns = header.split("\t")
    return tuple(_term(columns, row, line) for line, row in enumerate(rows, start=2))


@functools.cache
def terms_by_id() -> dict[str, Term]:
    """The terminology by term id."""
    return {term.id: term for term in load_terminology()}


def _term(columns: list[str], row: str, line: int) -> Term:
    cells = row.split("\t")
    if len(cells) != len(columns):
        raise UserError(
            f"terminology.tsv, line {line}: {len(cells)} columns, expected {len(columns)} ({', '.join(columns)})"
        )
    fields = dict(zip(columns, cells, strict=True))
    if fields["category"] not in CATEGORIES or not fields["frequency"].isdecimal():
        raise UserError(
            f"terminology.tsv, line {line}: category {fields['category']!r} and frequency "
            f"{fields['frequency']!r}, expected one of {', '.join(CATEGORIES)} and a whole number"
        )
    return Term(
        id=fields["id"],
        category=fields["category"],
        frequency=int(fields["frequency"]),
        modifiers=frozenset(_items(fields["modifiers"])),
        keys=frozenset((fields["id"], *_items(fields["keys"]))),
        related=_items(fields["related"]),
        zh=fields["zh"],
        en=fields["en"],
        synonyms_zh=_items(fields["synonyms_zh"]),
        synonyms_en=_items(fields["synonyms_en"]),
    )


def _items(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(cell.split("|"))
