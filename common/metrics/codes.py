"""Metrics of sets of codes, such as `Opacity/lung/base/left`: as they stand, and by their heads (before the first "/").

`precision`, `recall`, `F1` are micro: over all codes of all reports. `mean-F1` is the mean of each report's F1, and
`exact-match` the share of reports whose set is right. 0/0 counts as 1:
two empty sets agree. If only one of them is empty, the score is 0.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from jaxtyping import Float

from common.errors import UserError
from common.metrics.bootstrap import Measure, summarize

SCORES = ("precision", "recall", "F1", "mean-F1", "exact-match")


def evaluate_codes(
    predictions: Sequence[AbstractSet[str]],
    references: Sequence[AbstractSet[str]],
    *,
    intervals: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Scores of predicted sets of codes, one pair per report, as fractions.

    Returns {"codes/F1": {"value": v, "low": l, "high": h}, ..., "heads/F1": ...}, with 95% bootstrap intervals.
    """
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"{len(predictions)} predicted and {len(references)} reference sets: expected the same "
            "number of each, at least one"
        )
    measures = [
        code_measure("codes", predictions, references),
        code_measure("heads", [*map(heads, predictions)], [*map(heads, references)]),
    ]
    return summarize(measures, with_intervals=intervals, seed=seed)


def heads(codes: AbstractSet[str]) -> frozenset[str]:
    """The heads of codes: `Opacity` of `Opacity/lung/base/left`."""
    return frozenset(code.split("/", 1)[0].strip() for code in codes)


def code_measure(name: str, predictions: Sequence[AbstractSet[str]], references: Sequence[AbstractSet[str]]) -> Measure:
    """The five scores under a name, for values, intervals and paired differences."""
    rows = []
    for predicted, expected in zip(predictions, references, strict=True):
        right = len(predicted & expected)
        total = len(predicted) + len(expected)
        report_f1 = 2 * right / total if total else 1.0
        rows.append([right, len(predicted), len(expected), report_f1, float(predicted == expected), 1])
    names = tuple(f"{name}/{score}" for score in SCORES)
    return Measure(names, np.array(rows, dtype=np.float64), _score)


def _score(totals: Float[np.ndarray, "... 6"]) -> Float[np.ndarray, "... 5"]:
    right, predicted, expected, report_f1, exact, count = np.moveaxis(totals, -1, 0)
    nothing = predicted + expected == 0
    ratios = [
        np.where(nothing, 1.0, numerator / np.maximum(denominator, 1))
        for numerator, denominator in [(right, predicted), (right, expected), (2 * right, predicted + expected)]
    ]
    return np.stack([*ratios, report_f1 / count, exact / count], axis=-1)
