"""What the standard form of a report is likely to say, by the terms of its source: texts that drafts may come from."""

from common.data.records import Language
from common.metrics.tokenize import language_of
from retsta_jax.corpus.findings import EYES, STATUSES, Finding, FundusStudy, order_findings, standard_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import find_terms, statements_of
from retsta_jax.terminology.terms import Terminology


def expected_texts(report: str, terms: Terminology) -> list[str]:
    """The standard names of the terms found; with the shipped terminology also the whole report that they make up."""
    language: Language = language_of(report)
    matches = find_terms(report, terms, language)
    texts = list(dict.fromkeys(match.name for match in matches))
    if terms is load_terminology():
        stated = sorted(statements_of(matches, terms))
        findings = [
            Finding(eye, own.term, status)
            for own in stated
            for eye in EYES
            for status in STATUSES
            if (own.eye, own.status) == (eye, status)
        ]
        texts.append(standard_report(FundusStudy(order_findings(findings)), language))
    return [text for text in texts if text]
