"""The number of drafts of a pass follows what has stood, and what a pass costs."""

import numpy as np
import pytest

from common.generation import draft_length
from common.generation.draft_length import (
    FIRST_CHANCE,
    best_draft_length,
    chance_of,
    draft_lengths,
    expected_to_stand,
    updated_chance,
)

LENGTHS = draft_lengths(8)
ROWS = 4


def best(chance, rows=ROWS):
    return best_draft_length(chance, rows, LENGTHS)


@pytest.mark.parametrize(("most", "lengths"), [(0, (0,)), (1, (0, 1)), (2, (0, 1, 2)), (8, (0, 4, 8))])
def test_there_are_few_lengths_and_one_where_there_are_no_drafts(most, lengths):
    assert draft_lengths(most) == lengths


@pytest.mark.parametrize("length", [1, 4, 8])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.93])
def test_the_chance_is_that_of_drafts_drawn_with_it(chance, length):
    stands = np.cumprod(np.random.default_rng(0).random((100_000, length)) < chance, axis=1)
    assert abs(stands.sum() / len(stands) - expected_to_stand(chance, length)) < 0.02
    assert abs(chance_of(stands.sum() / len(stands), length) - chance) < 0.01
    assert chance_of(length, length) > 0.9999
    assert chance_of(0, length) < 1e-5


def test_drafts_that_stand_become_long_and_others_are_given_up_and_tried_again():
    chance, lengths = FIRST_CHANCE, []
    for _ in range(40):
        lengths.append(best(chance))
        chance = updated_chance(chance, lengths[-1], stood=lengths[-1] * 20, passes=20)
    assert lengths[-1] == 8
    for _ in range(200):
        lengths.append(best(chance))
        chance = updated_chance(chance, lengths[-1], stood=0, passes=20)
    tried = np.array(lengths[-100:]) > 0
    assert 0 < tried.sum() < 20  # nothing is learned without drafts


def test_a_call_without_passes_says_nothing():
    assert updated_chance(0.4, 4, stood=0, passes=0) == 0.4


def test_a_pass_without_free_arithmetic_has_drafts_only_if_nearly_all_stand(monkeypatch):
    assert best(0.5, rows=1) == 4
    assert best(0.5, rows=1000) == 0
    assert best(0.99, rows=40) > 0
    monkeypatch.setattr(draft_length, "CPU_BALANCE", 1e9)
    assert best(0.2, rows=1000) == 8  # nothing is lost by trying


@pytest.mark.parametrize("chance", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_the_choice_is_that_of_the_largest_simulated_rate(chance):
    stands = np.cumprod(np.random.default_rng(0).random((200_000, max(LENGTHS))) < chance, axis=1)
    rates = {
        length: (1 + stands[:, :length].sum(axis=1).mean()) / (1 + ROWS * (length + 1) / draft_length.CPU_BALANCE)
        for length in LENGTHS
    }
    assert best(chance) == max(rates, key=rates.__getitem__)
