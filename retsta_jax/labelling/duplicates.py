"""Removal of near-duplicates among labelled reports, and how much of the long tail text similarity alone would remove.

RetSTA "calculated text similarity and removed redundant data with description homogeneity above a threshold" and does
not say how. Short reports that differ in left and right, or in mild and severe, are nearly identical as text, and
similarity alone would remove rare findings. Here reports are compared only with those that state the same findings.

Reports whose normalized text is equal are exact duplicates; of the rest, those whose sets of character n-grams have a
Jaccard index of at least the threshold are near-duplicates, found by MinHash (`minhash.py`) and verified
exactly. The first report in input order is kept (`retsta_jax.labelling.greedy`).
"""

import re
import sys
import time
import unicodedata
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from common.bounds import Few, Share, Within, check_numbers
from retsta_jax.labelling.greedy import keep_first
from retsta_jax.labelling.minhash import band_keys, ngram_sets

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class DuplicateConfig:
    """Which reports are near-duplicates, and how reliably they are found.

    With the defaults, 97.5% of pairs at the threshold are found and 99.9% of pairs at 0.87; see `minhash.py`.
    """

    threshold: Share = 0.8  # Jaccard index of the sets of n-grams
    ngram: Annotated[int, Within(1, 16)] = 3  # characters
    bands: Few = 20
    rows: Few = 8  # entries of the signature in a band


class Duplicate(NamedTuple):
    """A removed report and the one that stays for it. `similarity` is the Jaccard index of exactly these two."""

    id: str | int
    stays: str | int
    similarity: float
    kind: Literal["exact", "near"]


class PlainText(NamedTuple):
    """What similarity of text alone would have removed."""

    removed: int  # reports
    different: int  # of these, reports that state other findings than the one that stays
    states_lost: int  # combinations of findings that no remaining report would state
    examples: tuple[Duplicate, ...]  # of the different ones, the most similar first, one for each report that stays


class Deduplicated(NamedTuple):
    """The removed reports, in the order of the input, and what would have been removed without `states`."""

    removed: tuple[Duplicate, ...]
    plain_text: PlainText


def deduplicate(
    reports: Iterable[tuple[str | int, str, Hashable]], config: DuplicateConfig = DuplicateConfig(), examples: int = 20
) -> Deduplicated:
    """Find the duplicates among reports (id, text, states), with progress on stderr where it takes long.

    `states` is what the report states, such as a frozenset of (term, eye, status, severity, number): reports in which
    it differs are never duplicates, so whatever must not be lost belongs in it. The strictest choice, which needs no
    terminology, is the normalized standard report.

    The result depends on the reports and their order alone; a report that is similar to none changes nothing between
    the others. Raises UserError for a config out of bounds.
    """
    check_numbers(config)
    ids, text, states, texts = _numbered(reports)
    sets = ngram_sets(texts, config.ngram)
    del texts
    keys = band_keys(sets, config.bands, config.rows)

    def found(group: Int[np.ndarray, " N"], name: str) -> _Found:
        item, row = _distinct(group, text)
        kept = keep_first(sets, keys, text[row], group[row], config.threshold, _progress(name, len(row)))
        return _Found(row[kept.stays[item]], kept.similarity[item], kept.stays[item] == item)

    within = found(states, "compared within findings")
    alone = found(np.zeros_like(states), "compared by text alone")
    different = states != states[alone.stays]
    return Deduplicated(
        _duplicates(ids, within, _removed(within)),
        PlainText(
            len(_removed(alone)),
            int(different.sum()),
            len(np.unique(states)) - len(np.unique(states[alone.stays])),
            _duplicates(ids, alone, _most_similar(alone, np.flatnonzero(different))[:examples]),
        ),
    )


def normalized(text: str) -> str:
    """What exact duplicates have in common: the text in compatibility form and lower case without separators.

    Full stops, commas and colons stay between digits, and so do all signs with a meaning of their own (+ - / % ? < >).
    One space stays between words and numbers of scripts that write spaces.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _SPACE_TO_DROP.sub("", _SEPARATORS.sub(" ", folded)).strip()


_SEPARATORS = re.compile(r"""(?:[\s\x00;!。、…·•"'`‘’“”()\[\]{}「」『』【】〔〕《》〈〉_]|(?<!\d)[.,:]|[.,:](?!\d))+""")
_SPACE_TO_DROP = re.compile(r"(?<![^\W\u2e80-\U0003ffff]) | (?![^\W\u2e80-\U0003ffff])")  # Chinese begins at 2e80


class _Found(NamedTuple):
    """For each report the number of the one that stays, their similarity, and whether their texts are equal."""

    stays: Int[np.ndarray, " N"]
    similarity: Float[np.ndarray, " N"]
    exact: Bool[np.ndarray, " N"]


def _numbered(
    reports: Iterable[tuple[str | int, str, Hashable]],
) -> tuple[list[str | int], Int[np.ndarray, " N"], Int[np.ndarray, " N"], list[str]]:
    """The ids, the number of each report's text and of its states, and the distinct texts by number."""
    ids: list[str | int] = []
    text_numbers, state_numbers = array("q"), array("q")
    texts: dict[str, int] = {}
    states: dict[Hashable, int] = {}
    progress = _progress("normalized", None)
    for id_, text, state in reports:
        ids.append(id_)
        # An empty text has no n-gram; NUL, which no normalized text holds, has one that it shares with no other.
        text_numbers.append(texts.setdefault(normalized(text) or "\0", len(texts)))
        state_numbers.append(states.setdefault(state, len(states)))
        if len(ids) % 1000 == 0:
            progress(len(ids))
    return ids, np.array(text_numbers, np.int64), np.array(state_numbers, np.int64), list(texts)


def _distinct(
    group: Int[np.ndarray, " N"], text: Int[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " K"]]:
    """The number of each row's (group, text), in the order of their first rows, and those first rows."""
    together = group * (text.max(initial=0) + 1) + text
    _, first, item = np.unique(together, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return number[item], first[order]


def _removed(found: _Found) -> Int[np.ndarray, " n"]:
    return np.flatnonzero(found.stays != np.arange(len(found.stays)))


def _most_similar(found: _Found, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " examples"]:
    """One of the rows for each report that stays, the most similar first."""
    by_similarity = rows[np.argsort(-found.similarity[rows], kind="stable")]
    _, first = np.unique(found.stays[by_similarity], return_index=True)
    return by_similarity[np.sort(first)]


def _duplicates(ids: Sequence[str | int], found: _Found, rows: Int[np.ndarray, " n"]) -> tuple[Duplicate, ...]:
    columns = (found.stays[rows].tolist(), found.similarity[rows].tolist(), found.exact[rows].tolist())
    return tuple(
        Duplicate(ids[row], ids[stays], similarity, "exact" if exact else "near")
        for row, stays, similarity, exact in zip(rows.tolist(), *columns, strict=True)
    )


def _progress(done_what: str, total: int | None) -> Callable[[int], None]:
    """A function that prints how many reports are done, every ten seconds."""
    last = time.monotonic()

    def say(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            of_all = "" if total is None else f" of {total:,}"
            print(f"near-duplicates: {done:,}{of_all} reports {done_what}", file=sys.stderr, flush=True)

    return say
