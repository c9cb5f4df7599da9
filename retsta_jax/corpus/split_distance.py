"""The distance of a test split from the training split: what its scores say about reports by other authors.

Works on any pairs. A test split by the same authors shares most of its 4-grams with training, and each of its reports
has a near neighbour there; one of unseen styles and states does not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from common.data.records import Language, ReportPair
from common.metrics.baselines import nearest_similarities
from common.metrics.overlap import ngrams
from common.metrics.tokenize import tokens_of
from common.report.page import Table
from retsta_jax.terminology.matching import find_terms
from retsta_jax.terminology.terms import LANGUAGES, Terminology, normal_form

Distance = dict[str, float]

ORDERS = (3, 4)  # of the n-grams, in words (en) or characters (zh)
MEASURES: Mapping[str, tuple[str, str]] = {
    "train_reports": ("training reports", ",.0f"),
    "test_reports": ("test reports", ",.0f"),
    **{f"unseen_{order}grams": (f"{order}-grams of the sources that training lacks", ".1%") for order in ORDERS},
    "nearest_similarity": ("TF-IDF cosine with the nearest training source, mean", ".3f"),
    "seen_sources": ("sources that stand in training", ".1%"),
    "seen_targets": ("standard reports that stand in training", ".1%"),
    "names": ("different names of terms in the sources", ",.0f"),
    "unseen_names": ("of these, names that no training source has", ",.0f"),
}  # what each is, and its format


def distance_between(
    train: Sequence[ReportPair], test: Sequence[ReportPair], terms: Terminology | None = None
) -> dict[Language, Distance]:
    """For each language of the test split its distance from training, by the names of MEASURES.

    All are shares from 0 to 1 but the counts of reports and of names. n-grams are counted as often as they occur. Names
    are those of `terms`, as they stand in the text but for case and width; without `terms` they are left out.
    A language that training lacks is at the greatest distance.
    """
    return {
        language: _distance(_of(train, language), _of(test, language), language, terms)
        for language in sorted({pair.language for pair in test})
    }


def distance_table(distances: Mapping[Language, Distance]) -> Table:
    """The distances as a table of the run page, a column for each language."""
    rows = [
        (text, *(f"{distance[name]:{form}}" if name in distance else "" for distance in distances.values()))
        for name, (text, form) in MEASURES.items()
        if any(name in distance for distance in distances.values())
    ]
    return Table(
        "Distance of the test split from training",
        "Scores hold for reports as far from training as these; n-grams are words (en) or characters (zh).",
        ("", *distances),
        rows,
    )


def _of(pairs: Sequence[ReportPair], language: Language) -> list[ReportPair]:
    return [pair for pair in pairs if pair.language == language]


def _distance(
    train: Sequence[ReportPair], test: Sequence[ReportPair], language: Language, terms: Terminology | None
) -> Distance:
    known, asked = [pair.source for pair in train], [pair.source for pair in test]
    found: Distance = {"train_reports": len(train), "test_reports": len(test)}
    for order in ORDERS:
        seen = set(_ngrams(known, order, language))
        counts = _ngrams(asked, order, language)
        unseen = sum(count for ngram, count in counts.items() if ngram not in seen)
        found[f"unseen_{order}grams"] = unseen / max(counts.total(), 1)
    readable = any(map(str.isalnum, "".join(known)))
    similar = nearest_similarities(known, asked, language=language) if readable else [0.0]
    found["nearest_similarity"] = float(np.mean(similar))
    for part in ("source", "target"):
        seen = {getattr(pair, part) for pair in train}
        found[f"seen_{part}s"] = sum(getattr(pair, part) in seen for pair in test) / len(test)
    if terms is not None:
        names, others = _names(asked, language, terms), _names(known, language, terms)
        found |= {"names": len(names), "unseen_names": len(names - others)}
    return found


def _ngrams(texts: Sequence[str], order: int, language: Language) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        counts.update(ngrams(tokens_of(text, language), order))
    return counts


def _names(texts: Sequence[str], language: Language, terms: Terminology) -> set[str]:
    """Names as the table has them, so that a slip of the keyboard is no name."""
    written = {normal_form(form) for term in terms.terms for spoken in LANGUAGES for form in term.forms(spoken)}
    return written & {normal_form(match.text) for text in texts for match in find_terms(text, terms, language)}
