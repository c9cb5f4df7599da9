"""The statements of reports as sets: the basis of precision, recall and F1 over findings.

A generated fundus report is parsed exactly, with degree, place and ratio. Any other is read by a terminology: term, eye
and certainty of each mention.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from common.data.records import Language
from retsta_jax.corpus.findings import parse_standard_report
from retsta_jax.terminology.matching import find_terms, statements_of
from retsta_jax.terminology.terms import Terminology

BREAK = re.compile(r"[,，、;；。\n]|\.(?!\d)")


class Recognised(NamedTuple):
    """Of the statements of some reports (what stands between breaks), how many hold a term."""

    recognised: int
    statements: int

    def note(self) -> str:
        """What a reader of the scores should know."""
        share = self.recognised / self.statements if self.statements else 0.0
        return (
            f"The terminology recognised {self.recognised} of {self.statements} statements of the references "
            f"({share:.1%}); precision, recall and F1 over findings see no others."
        )


def stated(text: str, language: Language, terms: Terminology) -> frozenset[str]:
    """Statements of a report as paths whose head is the term, such as "drusen/right/present"."""
    return frozenset("/".join(one) for one in statements_of(find_terms(text, terms, language), terms))


def stated_in_standard_form(text: str, language: Language) -> frozenset[str]:
    """Statements of a report that is to be in this project's standard form; parts that are not stand for themselves."""
    parsed = parse_standard_report(text, language)
    rows = [dataclasses.asdict(finding) for finding in parsed.findings]
    paths = ["/".join([row.pop("term"), *(str(value) for value in row.values())]) for row in rows]
    return frozenset([*paths, *parsed.unparsed])


def recognised(texts: Sequence[str], languages: Sequence[Language], terms: Terminology) -> Recognised:
    """How much of what reports state a terminology recognises."""
    found = total = 0
    for text, language in zip(texts, languages, strict=True):
        for clause in BREAK.split(text):
            if any(map(str.isalnum, clause)):
                total += 1
                found += any(terms.by_id[match.term].states for match in find_terms(clause, terms, language))
    return Recognised(found, total)
