"""Reports of one split that another has already: a score on them says little of new patients.

Two reports are the same where their normalized texts are (case, spaces and punctuation apart), and near-duplicates
where the sets of their character 3-grams have a Jaccard index of at least 0.8: candidates by MinHash, each verified
exactly (`retsta_jax.labelling`). At the threshold 97.5% of pairs are found.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt

from launch.data_card.reading import DataSet
from retsta_jax.labelling.duplicates import DuplicateConfig, normalized
from retsta_jax.labelling.minhash import NgramSets, band_keys, may_be_similar, ngram_sets, ranges, similarities

BLOCK = 256  # reports that are compared at a time
PAIRS_AT_ONCE = 1 << 20


class Leak(NamedTuple):
    """Of the `reports` of split `asked`, how many split `known` has, too: the same, and nearly the same besides.

    `patients` of both splits are None where the source does not name them.
    """

    asked: str
    known: str
    reports: int
    exact: int
    near: int
    patients: int | None

    @property
    def share(self) -> float:
        """Of reports that the other split has, the same or nearly."""
        return (self.exact + self.near) / self.reports


def leaks(data: DataSet) -> list[Leak]:
    """Every split with each that comes before it in training: test and validation with train, test with validation."""
    config = DuplicateConfig()
    texts = {name: [record.report for record in records] for name, records in data.splits.items()}
    order = [(asked, known) for known, asked in _earlier(list(texts))]
    found = []
    for asked, known in order:
        exact, near = duplicates_in(texts[known], texts[asked], config)
        found.append(
            Leak(asked, known, len(texts[asked]), int(exact.sum()), int(near.sum()), _shared(data, asked, known))
        )
    return found


def _earlier(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, known in enumerate(names):
        yield from ((known, asked) for asked in names[number + 1 :])


def _shared(data: DataSet, asked: str, known: str) -> int | None:
    if not data.patients:
        return None
    of_split = {
        name: {data.patients[record.id] for record in data.splits[name] if record.id in data.patients}
        for name in (asked, known)
    }
    return len(of_split[asked] & of_split[known])


def repeated_within(data: DataSet) -> Mapping[str, int]:
    """How many reports of each split are the same as an earlier one of it."""
    return {
        name: len(records) - len({normalized(record.report) for record in records})
        for name, records in data.splits.items()
    }


def duplicates_in(
    known: Sequence[str], asked: Sequence[str], config: DuplicateConfig
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Which of the texts `asked` are among the `known`: the same, and others that are near-duplicates of one."""
    known_texts = dict.fromkeys(filter(None, map(normalized, known)))
    forms = list(map(normalized, asked))
    exact = np.array([form in known_texts for form in forms], bool)
    rest = list(dict.fromkeys(form for form, same in zip(forms, exact, strict=True) if form and not same))
    near = dict(zip(rest, _near(list(known_texts), rest, config), strict=True))
    return exact, np.array([near.get(form, False) for form in forms], bool)


def _near(known: Sequence[str], asked: Sequence[str], config: DuplicateConfig) -> Bool[np.ndarray, " N"]:
    found = np.zeros(len(asked), bool)
    if not known or not asked:
        return found
    sets = ngram_sets([*known, *asked], config.ngram)
    keys = band_keys(sets, config.bands, config.rows)
    for band in keys:
        order = np.argsort(band[: len(known)])
        by_key = band[: len(known)][order]
        for first in range(0, len(asked), BLOCK):
            wanted = first + np.flatnonzero(~found[first : first + BLOCK])
            for left, right in _candidates(by_key, order, band[len(known) + wanted], wanted):
                found[left[_similar(sets, left + len(known), right, config.threshold)]] = True
    return found


def _candidates(
    by_key: UInt[np.ndarray, " K"], order: Int[np.ndarray, " K"], keys: UInt[np.ndarray, " n"],
    wanted: Int[np.ndarray, " n"],
) -> Iterator[tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]]:  # fmt: skip
    """Pairs of wanted texts with known ones that have their key, some at a time."""
    starts = np.searchsorted(by_key, keys)
    counts = np.searchsorted(by_key, keys, side="right") - starts
    left, right = wanted.repeat(counts), ranges(starts, counts)
    for first in range(0, len(left), PAIRS_AT_ONCE):
        yield left[first : first + PAIRS_AT_ONCE], order[right[first : first + PAIRS_AT_ONCE]]


def _similar(
    sets: NgramSets, left: Int[np.ndarray, " P"], right: Int[np.ndarray, " P"], threshold: float
) -> Bool[np.ndarray, " P"]:
    similar = may_be_similar(sets, left, right, threshold)
    where = np.flatnonzero(similar)
    similar[where] = similarities(sets, left[where], right[where]) >= threshold
    return similar
