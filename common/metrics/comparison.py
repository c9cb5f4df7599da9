"""Which differences between systems hold: paired bootstrap of every score, and Holm's correction over all of them.

All systems are scored on the same reports, and every resample draws the same reports for all. With many systems and
scores, some differences look significant by chance: the correction bounds the probability that any of those that are
said to hold is one of these (Holm, 1979, "A simple sequentially rejective multiple test procedure").
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from common.metrics.bootstrap import Measure, resampled_scores, values

LEVEL = 0.05  # probability that any difference is wrongly said to hold
RESAMPLES = 10_000  # so that the smallest p, 2 / 10,001, stays below the level with up to 250 comparisons


class Difference(NamedTuple):
    """One score of `first` less that of `second`: 95% interval, two-sided p, and p corrected for all comparisons."""

    score: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    corrected: float

    @property
    def holds(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.corrected < LEVEL


def compare(
    systems: Mapping[str, Sequence[Measure]], scores: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """Each pair of systems by each of the scores; systems are measured on the same reports in the same order.

    The p is that of the percentile bootstrap, twice the share of resamples on the rarer side of 0, with one added to
    both counts (Davison and Hinkley, 1997, 4.2), so that it is never 0.
    """
    found = {
        name: {
            score: (value, draws[:, column])
            for measure in measures
            if {*measure.names} & {*scores}
            for draws in [resampled_scores(measure, resamples, seed)]
            for column, (score, value) in enumerate(values(measure).items())
        }
        for name, measures in systems.items()
    }
    rows: list[Difference] = []
    for score in scores:
        for first, second in itertools.combinations(systems, 2):
            (value, draws), (other, other_draws) = found[first][score], found[second][score]
            drawn = draws - other_draws
            low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
            rows.append(Difference(score, first, second, value - other, low, high, two_sided(drawn), 1.0))
    corrected = holm(np.array([row.p for row in rows])).tolist()
    return [row._replace(corrected=p) for row, p in zip(rows, corrected, strict=True)]


def two_sided(differences: Float[np.ndarray, " R"]) -> float:
    """The p of a difference, from resamples of it."""
    side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(differences) + 1))


def holm(p: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Each p corrected for all: the smallest times M, the next times M - 1, ..., none below one before it."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected
