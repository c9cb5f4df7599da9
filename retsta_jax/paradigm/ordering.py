"""Whether two or more systems rank in the same order as in a paper, seed by seed, as one sentence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.io.numbers import score_text

DECIMALS = 6  # of scores in metrics.json: what is equal there is equal here


class Comparison(NamedTuple):
    """Two systems, the better one of the paper first: in how many seeds it is better here, equal, worse, unknown.

    `mean` is its lead here over the seeds that are known, `paper` its lead there; None: not known.
    """

    first: str
    second: str
    better: int
    equal: int
    worse: int
    unknown: int
    mean: float | None
    paper: float | None


def compare(
    first: str,
    second: str,
    scores: Mapping[str, Sequence[float | None]],
    paper: Mapping[str, float],
) -> Comparison:
    """Two systems by their scores, one a seed (None: none); in the order of the paper's scores where it has both."""
    lead = paper[first] - paper[second] if first in paper and second in paper else None
    if lead is not None and lead < 0:
        first, second, lead = second, first, -lead
    pairs = list(zip(scores[first], scores[second], strict=True))
    leads = [round(own - other, DECIMALS) for own, other in pairs if own is not None and other is not None]
    return Comparison(
        first=first,
        second=second,
        better=sum(one > 0 for one in leads),
        equal=sum(one == 0 for one in leads),
        worse=sum(one < 0 for one in leads),
        unknown=len(pairs) - len(leads),
        mean=float(np.mean(leads)) if leads else None,
        paper=lead,
    )


def ordering_sentence(metric: str, comparisons: Iterable[Comparison]) -> str:
    """One sentence: in how many comparisons of seeds the order is the paper's, and each comparison with its leads.

    Leads are in points of a hundred. An equal score counts as agreement only where the paper's are equal.
    """
    found = list(comparisons)
    known = [one for one in found if one.paper is not None]
    agreeing = sum(one.better if one.paper else one.equal for one in known)
    total = sum(one.better + one.equal + one.worse for one in known)
    if total:
        opening = f"By {metric} the order is the paper's in {agreeing} of {total} comparisons"
    else:
        opening = f"By {metric} nothing can be compared with the paper's order"
    told = "; ".join(_told(one) for one in found)
    return f"{opening}: {told}." if told else f"{opening}."


def _told(one: Comparison) -> str:
    seeds = one.better + one.equal + one.worse
    paper = "not in the paper" if one.paper is None else f"paper: {_points(one.paper)}"
    if one.mean is None:
        return f"{one.first} and {one.second} have no scores to compare ({paper})"
    equal = f", equal in {one.equal}" if one.equal else ""
    unknown = f", unknown in {one.unknown}" if one.unknown else ""
    return (
        f"{one.first} > {one.second} in {one.better} of {seeds} {'seed' if seeds == 1 else 'seeds'}{equal}{unknown}, "
        f"by {_points(one.mean)} on average ({paper})"
    )


def _points(lead: float) -> str:
    return score_text(100 * lead, 2, sign=True)
