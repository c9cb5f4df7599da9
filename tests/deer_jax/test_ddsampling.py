"""DDSampling against the equations written out, exact probabilities of small draws, and the paper's numbers."""

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from common.errors import UserError
from deer_jax.ddsampling import (
    distinct_labels,
    diversity,
    inclusion_probabilities,
    log_rank_probabilities,
    ranks,
    reward_statistics,
    select,
    top_fifth,
)

MIMIC = 270_790  # training rows of MIMIC-CXR


def random_labels(studies: int, samples: int = 10, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random((studies, samples, 14)) < random.random((studies, 1, 14))).astype(np.int8)


def sequential_draw(probabilities: np.ndarray, order: tuple[int, ...]) -> float:
    """Chance of drawing these indices in this order, one after the other, without replacement."""
    chance, left = 1.0, 1.0
    for index in order:
        chance *= probabilities[index] / left
        left -= probabilities[index]
    return chance


def test_diversity_is_the_sum_of_standard_deviations():
    labels = random_labels(20, samples=7)
    expected = [
        sum(statistics.pstdev([int(sample[label]) for sample in study]) for label in range(14)) for study in labels
    ]
    np.testing.assert_allclose(diversity(labels), expected, atol=1e-9)


def test_diversity_has_no_ties_broken_by_rounding():
    labels = random_labels(200)
    random = np.random.default_rng(1)
    shuffled = np.stack([study[random.permutation(10)][:, random.permutation(14)] for study in labels])
    np.testing.assert_array_equal(diversity(labels), diversity(shuffled))
    np.testing.assert_array_equal(diversity(labels), diversity(1 - labels))


def test_distinct_labels_counts_different_rows():
    labels = random_labels(50, samples=4)
    labels[0] = labels[0, 0]
    labels[1, 1:] = 0
    assert distinct_labels(labels).tolist() == [len({tuple(row) for row in study}) for study in labels.tolist()]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_probabilities_follow_the_equation(exponent):
    diversities = np.array([0.3, 2.0, 1.1, 0.7, 1.9])
    rank = {2.0: 1, 1.9: 2, 1.1: 3, 0.7: 4, 0.3: 5}
    weights = [1 / math.log(rank[value] + 1) ** exponent for value in diversities.tolist()]
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(log_rank_probabilities(diversities, exponent), expected, rtol=1e-12)


def test_equal_studies_are_ordered_by_the_seed():
    equal = np.ones(6)
    orders = {tuple(ranks(equal, seed).tolist()) for seed in range(200)}
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders)
    assert len(orders) > 100
    first = Counter(int(ranks(equal, seed).argmin()) for seed in range(3000))
    assert chisquare([first[index] for index in range(6)]).pvalue > 1e-3
    assert ranks(np.array([1.0, 3.0, 2.0]), seed=5).tolist() == [3, 1, 2]


@pytest.mark.parametrize("exponent", [1.0, 3.0])
def test_the_draw_is_a_sequential_one_without_replacement(exponent):
    diversities = np.array([0.5, 3.0, 2.0, 1.0])
    probabilities = log_rank_probabilities(diversities, exponent)
    draws = Counter(tuple(select(diversities, 2, exponent=exponent, seed=seed).tolist()) for seed in range(6000))
    orders = list(itertools.permutations(range(4), 2))
    expected = [6000 * sequential_draw(probabilities, order) for order in orders]
    assert set(draws) <= set(orders)
    assert chisquare([draws[order] for order in orders], expected).pvalue > 1e-3


def test_inclusion_probabilities_are_near_the_exact_ones():
    probabilities = log_rank_probabilities(np.arange(10.0), 1.5)
    exact = np.zeros(10)
    for order in itertools.permutations(range(10), 4):
        exact[list(order)] += sequential_draw(probabilities, order)
    found = inclusion_probabilities(probabilities, 4)
    assert found.sum() == pytest.approx(4)
    np.testing.assert_allclose(found, exact, atol=0.02)
    assert inclusion_probabilities(probabilities, 10).tolist() == [1.0] * 10


def test_as_printed_the_sampling_of_mimic_cxr_is_nearly_uniform():
    diversities = np.random.default_rng(0).random(MIMIC)
    chosen = select(diversities, MIMIC // 5, seed=0)
    assert len(set(chosen.tolist())) == MIMIC // 5
    found = top_fifth(diversities, chosen, seed=0)
    assert found["mass"] == pytest.approx(0.234, abs=5e-4)
    assert found["share"] == pytest.approx(found["expected_share"], abs=0.005)
    assert found["expected_share"] == pytest.approx(0.229, abs=5e-4)


def test_a_sharper_exponent_and_the_strict_choice_take_more_of_the_top_fifth():
    diversities = np.random.default_rng(0).random(5000)
    shares = []
    for rule in ({"strategy": "random"}, {}, {"exponent": 4.0}, {"strategy": "top"}):
        found = top_fifth(diversities, select(diversities, 1000, seed=3, **rule), seed=3, **rule)
        assert found["share"] == pytest.approx(found["expected_share"], abs=0.03)
        shares.append(found["expected_share"])
    assert shares[0] == pytest.approx(0.2)
    assert shares[0] < shares[1] < shares[2] < shares[3] == 1.0


@pytest.mark.parametrize("strategy", ["log-rank", "top", "random"])
def test_a_smaller_choice_begins_a_larger_one(strategy):
    diversities = diversity(random_labels(60))
    large = select(diversities, 40, strategy=strategy, seed=9)
    np.testing.assert_array_equal(select(diversities, 15, strategy=strategy, seed=9), large[:15])
    assert not np.array_equal(select(diversities, 40, strategy=strategy, seed=10), large) or strategy == "top"


def test_the_strict_choice_is_the_most_diverse():
    diversities = np.array([1.0, 5.0, 3.0, 4.0, 2.0])
    assert select(diversities, 3, strategy="top", seed=1).tolist() == [1, 3, 2]


def test_rewards_are_measured_as_in_table_7():
    rewards = [[0.0, 0.0, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0], [0.1 + 0.2, 0.3, 0.3, 0.3], [0.1, 0.2, 0.3, 0.4]]
    found = reward_statistics(rewards)
    assert found["zero_variance_share"] == 0.5
    assert found["unique_rewards"] == (1 + 2 + 1 + 4) / 4
    assert found["mean_std"] == pytest.approx(statistics.mean(map(statistics.pstdev, rewards)))
    assert reward_statistics(np.array(rewards)) == found
    assert reward_statistics([[1, 1], [0, 1, 2]])["unique_rewards"] == 2


@pytest.mark.parametrize("exponent", [-1.0, 101.0, math.nan])
def test_impossible_exponents_are_refused(exponent):
    with pytest.raises(UserError, match="exponent"):
        log_rank_probabilities(np.arange(3.0), exponent)


def test_the_largest_exponent_still_draws_of_all():
    diversities = np.arange(1000.0)
    chosen = select(diversities, 999, exponent=100.0, seed=0)
    assert len(set(chosen.tolist())) == 999
    assert top_fifth(diversities, chosen, exponent=100.0)["expected_share"] == pytest.approx(200 / 999, abs=1e-3)


@pytest.mark.parametrize("count", [0, 4])
def test_more_studies_than_there_are_cannot_be_chosen(count):
    with pytest.raises(UserError, match="cannot be chosen from 3"):
        select(np.arange(3.0), count)
