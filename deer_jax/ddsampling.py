"""Diagnostic diversity-based data sampling (DEER Eq. 3-5): which studies to learn from, without their references.

A labeler reads the findings of K reports sampled for one study. Where the K agree, the rewards of a group hardly differ
and there is little to learn; where they differ, there is more. Studies are ranked by how much they differ, and drawn
with a probability that falls with the logarithm of the rank.

As printed, Eq. 5 is nearly uniform: of 270,790 studies the most diverse fifth has 23.4% of the probability. So
there are also the strict choice of the most diverse ("top") and an exponent on the probabilities, and the statistics
describe each selection. The paper does not say how it draws; here without replacement, ties by the seed.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Real, Shaped

from common.errors import UserError

Strategy = Literal["log-rank", "top", "random"]
MAXIMUM_EXPONENT = 100  # beyond it the least probable of a million studies has a probability of 0 in a float
Labels = Shaped[np.ndarray, "N K C"]  # 0 and 1, or of booleans


def diversity(labels: Labels) -> Float[np.ndarray, " N"]:
    """The standard deviation of each label over a study's K samples (Eq. 3), summed over the labels (Eq. 4).

    It is that of the K samples themselves, without Bessel's correction.
    """
    share = labels.mean(axis=1)
    deviation = np.sqrt(share * (1 - share))  # of zeros and ones, of which `share` are ones
    # Rounded, because the same deviations added in another order differ in the last bit and would be no tie.
    return deviation.sum(axis=-1).round(10)


def distinct_labels(labels: Labels) -> Int[np.ndarray, " N"]:
    """How many different label vectors each study's K samples have."""
    codes = np.sort(labels.astype(np.int64) @ (1 << np.arange(labels.shape[-1])), axis=1)
    return 1 + (np.diff(codes, axis=1) != 0).sum(axis=1)


def ranks(diversity: Float[np.ndarray, " N"], seed: int) -> Int[np.ndarray, " N"]:
    """The rank of each study, 1 being the most diverse. The seed decides between equals, not their order."""
    order = np.lexsort((_generator(seed, "ties").random(len(diversity)), -diversity))
    ranking = np.empty(len(diversity), np.int64)
    ranking[order] = np.arange(1, len(diversity) + 1)
    return ranking


def log_rank_probabilities(
    diversity: Float[np.ndarray, " N"], exponent: float = 1.0, seed: int = 0
) -> Float[np.ndarray, " N"]:
    """The probability of each study: 1 / log(rank + 1), to the power of `exponent`, over their sum (Eq. 5).

    The paper's exponent is 1; a larger one prefers diverse studies more, and 0 is uniform.
    """
    scores = _log_weights(ranks(diversity, seed), exponent)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def select(
    diversity: Float[np.ndarray, " N"],
    count: int,
    *,
    strategy: Strategy = "log-rank",
    exponent: float = 1.0,
    seed: int = 0,
) -> Int[np.ndarray, " n"]:
    """The indices of `count` studies, drawn without replacement, in the order drawn; "top": the most diverse first.

    So the first m of them are what a choice of m with the same seed would be. "log-rank" is a sequential draw with the
    probabilities of Eq. 5, done at once: the largest of log-probability + Gumbel noise (Kool et al., arXiv:1903.06059).
    Raises UserError where there are not as many studies.
    """
    if not 1 <= count <= len(diversity):
        raise UserError(f"{count} studies cannot be chosen from {len(diversity)}")
    if strategy == "random":
        return _generator(seed, "draw").permutation(len(diversity))[:count]
    ranking = ranks(diversity, seed)
    if strategy == "top":
        return np.argsort(ranking)[:count]
    noise = _generator(seed, "draw").gumbel(size=len(diversity))
    return np.argsort(-(_log_weights(ranking, exponent) + noise), kind="stable")[:count]


def inclusion_probabilities(probabilities: Float[np.ndarray, " N"], count: int) -> Float[np.ndarray, " N"]:
    """The chance of each study to be among `count` drawn one after the other without replacement.

    1 - exp(-p t), with t such that they add up to `count` (Rosén 1972): what a sequential draw tends to when there are
    many studies, and for ten within 0.02.
    """
    from scipy.optimize import brentq

    if count >= len(probabilities):
        return np.ones_like(probabilities)

    def excess(log_time: float) -> float:
        return float(-np.expm1(-probabilities * np.exp(log_time)).sum() - count)

    # At t = count / 2 the sum is at most count / 2; at t = 50 / min(p) every term is 1 to the last bit.
    low, high = np.log(count / 2), np.log(50.0 / probabilities.min())
    return -np.expm1(-probabilities * np.exp(brentq(excess, low, high, xtol=1e-7)))


def top_fifth(
    diversity: Float[np.ndarray, " N"],
    chosen: Int[np.ndarray, " n"],
    *,
    strategy: Strategy = "log-rank",
    exponent: float = 1.0,
    seed: int = 0,
) -> dict[str, float]:
    """What the most diverse fifth of the studies (at least one) has of a selection.

    `mass`: of the probability of the first draw. `expected_share`: of the selection, on average over draws.
    `share`: of this selection.
    """
    size = max(1, round(len(diversity) / 5))
    ranking = ranks(diversity, seed)
    first = ranking <= size
    if strategy == "top":
        mass = 1.0
        expected = min(1.0, size / len(chosen))
    else:
        probabilities = log_rank_probabilities(diversity, exponent if strategy == "log-rank" else 0.0, seed)
        mass = float(probabilities[first].sum())
        expected = float(inclusion_probabilities(probabilities, len(chosen))[first].sum() / len(chosen))
    return {"mass": mass, "expected_share": expected, "share": float(first[chosen].mean())}


def label_statistics(
    diversity: Float[np.ndarray, " N"], distinct: Real[np.ndarray, " N"], labels: int
) -> dict[str, float]:
    """What labels alone say about how much there is to learn, over studies; the paper's Table 7 needs rewards.

    `zero_variance_share`: studies whose K samples have the same labels. Their F1 rewards are equal, whatever the
    reference. `unique_vectors`: different label vectors of a study, the most that its F1 rewards can differ.
    `mean_std`: standard deviation of a label. `mean_diversity`: Eq. 4.
    """
    return {
        "zero_variance_share": float((distinct == 1).mean()),
        "unique_vectors": float(distinct.mean()),
        "mean_std": float(diversity.mean() / labels),
        "mean_diversity": float(diversity.mean()),
    }


def reward_statistics(rewards: Iterable[Sequence[float] | Float[np.ndarray, " K"]]) -> dict[str, float]:
    """Table 7 over groups of rewards: share of groups whose rewards are all equal, different rewards, and deviation.

    Rewards count as equal to nine decimals; the deviation is that of a group's rewards, without Bessel's correction.
    """
    different, deviations = zip(
        *((len({round(float(reward), 9) for reward in group}), np.std(group)) for group in rewards), strict=True
    )
    return {
        "zero_variance_share": different.count(1) / len(different),
        "unique_rewards": float(np.mean(different)),
        "mean_std": float(np.mean(deviations)),
    }


def _log_weights(ranking: Int[np.ndarray, " N"], exponent: float) -> Float[np.ndarray, " N"]:
    if not 0 <= exponent <= MAXIMUM_EXPONENT:
        raise UserError(
            f"exponent {exponent}: expected 0 to {MAXIMUM_EXPONENT}; for a stricter choice use the strategy top"
        )
    return -exponent * np.log(np.log(ranking + 1.0))


def _generator(seed: int, purpose: str) -> Any:
    # One stream for each purpose: how many numbers the ties take does not change the draw.
    return np.random.default_rng([seed, *purpose.encode()])
