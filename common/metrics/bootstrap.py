"""Percentile bootstrap over reports, for every metric that is a function of sums over reports.

A corpus score such as BLEU is not a mean of report scores, but it depends on the reports only through sums (matches,
lengths). With those per-report numbers kept, a resample is one small matrix product instead of a new evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Totals = Float[np.ndarray, "... K"]


@dataclass(frozen=True)
class Measure:
    """One or several scores as a function of sums over reports.

    `rows` [N, K] are the statistics of each report; `score` maps their sums [..., K] to the scores [..., M] called
    `names`, for any number of resamples at once.
    """

    names: tuple[str, ...]
    rows: Float[np.ndarray, "N K"]
    score: Callable[[Totals], Float[np.ndarray, "... M"]]


def mean_measure(name: str, scores: Float[np.ndarray, " N"]) -> Measure:
    """A metric that is the mean of its report scores."""
    rows = np.stack([scores, np.ones_like(scores)], axis=-1)
    return Measure((name,), rows, lambda totals: totals[..., :1] / totals[..., 1:])


def values(measure: Measure) -> dict[str, float]:
    """The scores over all reports."""
    return dict(zip(measure.names, measure.score(measure.rows.sum(0)).tolist(), strict=True))


def resampled_scores(measure: Measure, resamples: int = 1000, seed: int = 0) -> Float[np.ndarray, "R M"]:
    """Scores of `resamples` draws of N reports with replacement. Equal N and seed draw the same reports."""
    generator, count = np.random.default_rng(seed), len(measure.rows)
    totals = [
        np.bincount(generator.integers(count, size=count), minlength=count) @ measure.rows for _ in range(resamples)
    ]
    return measure.score(np.stack(totals))


def intervals(
    measure: Measure, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """(low, high) of each score: the percentiles that leave out (1 - level) / 2 of the resamples at each end."""
    return _percentiles(measure.names, resampled_scores(measure, resamples, seed), level)


def summarize(
    measures: Sequence[Measure], *, with_intervals: bool = True, seed: int = 0
) -> dict[str, dict[str, float]]:
    """{name: {"value": v, "low": l, "high": h}} of measures; low and high only `with_intervals`."""
    result: dict[str, dict[str, float]] = {}
    for measure in measures:
        result |= {name: {"value": value} for name, value in values(measure).items()}
        if with_intervals:
            for name, (low, high) in intervals(measure, seed=seed).items():
                result[name] |= {"low": low, "high": high}
    return result


def paired_difference(
    first: Measure, second: Measure, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """(low, high) of first minus second, two systems on the same reports in the same order, resampled together."""
    if first.names != second.names or len(first.rows) != len(second.rows):
        raise ValueError("a paired difference needs the same scores on the same reports")
    differences = resampled_scores(first, resamples, seed) - resampled_scores(second, resamples, seed)
    return _percentiles(first.names, differences, level)


def _percentiles(
    names: tuple[str, ...], scores: Float[np.ndarray, "R M"], level: float
) -> dict[str, tuple[float, float]]:
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
    return dict(zip(names, zip(low, high, strict=True), strict=True))
