"""Pairs of the embedded corpus in all its styles, whatever their split."""

import numpy as np

from common.data.records import ReportPair
from retsta_jax.corpus.fundus import sample_study
from retsta_jax.corpus.pairs import Languages, make_pair


def make_pairs(
    count: int, seed: int, language: Languages = "zh", noise: float = 0.5, start: int = 0
) -> list[ReportPair]:
    """Pairs `start` to `start + count`; each is a function of the seed and its index."""
    return [
        make_pair(sample_study(rng := np.random.default_rng([seed, index])), rng, index, language, noise)
        for index in range(start, start + count)
    ]
