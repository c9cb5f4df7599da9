"""Baselines: one constant report, and the report of the most similar training text.

A constant report reaches much of a trained model's BLEU and ROUGE, because most reports are normal ones.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from common.errors import UserError
from common.metrics.overlap import ORDERS, ngrams
from common.metrics.tokenize import Language, characters, language_of, tokens_of


def constant_reports(
    known: Sequence[str], known_languages: Sequence[Language], languages: Sequence[Language]
) -> list[str]:
    """For each of `languages` the constant report of the `known` reports in it; of all of these where none is."""
    chosen = {}
    for language in set(languages):
        own = [report for report, other in zip(known, known_languages, strict=True) if other == language]
        chosen[language] = constant_report(own or known, language=language)
    return [chosen[language] for language in languages]


def constant_report(reports: Sequence[str], *, language: Language | None = None) -> str:
    """The report most similar to all of them: the medoid by the cosines of 1- to 4-gram counts, the first of equals.

    The most frequent report would be arbitrary where nearly every text is unique, and a weak baseline: on IU X-ray it
    has half the BLEU-4 of this one. Taken from training reports it is a fair baseline; taken from the references
    themselves an optimistic one, a bound on what a single text can give. `language` says what a token is; where it is
    not given, the characters of all reports do.
    """
    if not reports:
        raise UserError("a constant report needs at least one report to choose from")
    language = language or language_of("".join(reports))
    vectors = {report: _unit_counts(tokens_of(report, language)) for report in dict.fromkeys(reports)}
    centre: dict[tuple[str, ...], float] = defaultdict(float)
    for report, times in Counter(reports).items():
        for ngram, weight in vectors[report].items():
            centre[ngram] += times * weight
    return max(vectors, key=lambda report: sum(weight * centre[ngram] for ngram, weight in vectors[report].items()))


def nearest_reports(
    train_sources: Sequence[str],
    train_targets: Sequence[str],
    sources: Sequence[str],
    *,
    language: Language | None = None,
) -> list[str]:
    """For each source the target of the training source with the largest cosine of TF-IDF, the first one of equals.

    Words (en) or characters and their pairs (zh). A source that shares no word with training gets the constant report.
    """
    if not train_sources or len(train_sources) != len(train_targets):
        raise UserError(
            f"{len(train_sources)} training sources and {len(train_targets)} targets: expected the "
            "same number of each, at least one"
        )
    language = language or language_of("".join(train_sources))
    fallback = constant_report(train_targets, language=language)
    return [
        train_targets[index] if value > 0 else fallback for index, value in _nearest(train_sources, sources, language)
    ]


def nearest_similarities(train_sources: Sequence[str], sources: Sequence[str], *, language: Language) -> list[float]:
    """For each source its cosine with the training source that `nearest_reports` takes, 0 where they share no word."""
    return [value for _, value in _nearest(train_sources, sources, language)]


def similarities(
    known: Sequence[str], others: Sequence[str], texts: Sequence[str], *, language: Language
) -> list[list[float]]:
    """For each of `texts` its cosines with `others`, in TF-IDF whose frequencies are those of the `known` texts.

    Words (en) or characters and their pairs (zh). Raises UserError where the `known` texts hold no word.
    """
    return [row.tolist() for block in _cosines(known, others, texts, language) for row in block]


def _nearest(train_sources: Sequence[str], sources: Sequence[str], language: Language) -> Iterator[tuple[int, float]]:
    """The index of the nearest training source of each source, and their cosine."""
    for similarity in _cosines(train_sources, train_sources, sources, language):
        yield from zip(similarity.argmax(axis=1).tolist(), similarity.max(axis=1).tolist(), strict=True)


def _cosines(
    known: Sequence[str], others: Sequence[str], texts: Sequence[str], language: Language
) -> Iterator[np.ndarray]:
    """`similarities` in blocks of rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if language == "en":
        vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
    else:
        vectorizer = TfidfVectorizer(tokenizer=characters, token_pattern=None, ngram_range=(1, 2))
    try:
        fitted = vectorizer.fit_transform(known)
    except ValueError as error:
        raise UserError("the training sources contain no word; expected report texts") from error
    columns = fitted if others is known else vectorizer.transform(others)
    rows = 512  # bounds the dense block of similarities, rows x others
    for start in range(0, len(texts), rows):
        # Rounded, because the same words in another order differ in the last bit and would decide between equals.
        yield (vectorizer.transform(texts[start : start + rows]) @ columns.T).toarray().round(12)


def _unit_counts(tokens: Sequence[str]) -> dict[tuple[str, ...], float]:
    """Counts of 1- to 4-grams, each order scaled to length 1 so that the cosines of all orders weigh alike."""
    unit: dict[tuple[str, ...], float] = {}
    for order in range(1, ORDERS + 1):
        counts = ngrams(tokens, order)
        norm = math.sqrt(sum(count * count for count in counts.values()))
        unit |= {ngram: count / norm for ngram, count in counts.items()}
    return unit
