"""The findings of a standardized report beside those of its reference, in words of the report's language.

They are those that `retsta evaluate` counts. A fundus report that is not in standard form is compared by the
terminology instead: the same term, eye and certainty in other words is right.
"""

from collections.abc import Iterator, Sequence

from common.data.records import Language
from common.report.findings import Marks, mark_findings
from retsta_jax.codes import parse_codes
from retsta_jax.corpus.findings import FORMS, Finding, parse_standard_report, standard_phrase
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import Terminology


def pair_marks(reference: str, output: str, language: Language, corpus: str, terms: Terminology) -> Marks:
    """The marks of one output; `corpus` is the form of its targets, as `scored_as` tells it."""
    texts = reference, output
    if corpus == "openi":
        return mark_findings(*(sorted(parse_codes(text)) for text in texts))
    if corpus == "fundus":
        parsed = [parse_standard_report(text, language) for text in texts]
        if not any(report.unparsed for report in parsed):
            return mark_findings(*([_standard(one, language) for one in report.findings] for report in parsed))
    return mark_findings(*(_by_terms(text, language, terms) for text in texts))


def report_marks(
    references: Sequence[str], outputs: Sequence[str], languages: Sequence[Language], corpus: str, terms: Terminology
) -> list[Marks]:
    """The marks of each output."""
    pairs = zip(references, outputs, languages, strict=True)
    return [pair_marks(reference, output, language, corpus, terms) for reference, output, language in pairs]


def _standard(finding: Finding, language: Language) -> str:
    form = FORMS[language]
    return f"{form.eyes[finding.eye]}{form.colon}{standard_phrase(finding, language)}"


def _by_terms(text: str, language: Language, terms: Terminology) -> Iterator[str]:
    form = FORMS[language]
    for match in find_terms(text, terms, language):
        if terms.by_id[match.term].states:
            for eye in ("right", "left") if match.eye == "both" else (match.eye,):
                side = f"{form.eyes[eye]}{form.colon}" if eye else ""
                yield f"{side}{form.statuses[match.status]}{match.name}"
