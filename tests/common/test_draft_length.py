"""The number of drafts of a pass follows what has stood, and what a pass costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from common.generation import draft_length
from common.generation.draft_length import add_trials, best_draft_length, draft_lengths, no_trials

LENGTHS = draft_lengths(8)
ACTIVE = jnp.ones((4, 1), bool)


def after(stood, drafts=8, passes=30):
    trials = no_trials(4, 1)
    for _ in range(passes):
        trials = add_trials(trials, jnp.full((4, 1), stood), drafts)
    return trials


def best(trials, active=ACTIVE):
    return LENGTHS[int(best_draft_length(trials, active, LENGTHS))]


@pytest.mark.parametrize(("most", "lengths"), [(0, (0,)), (1, (0, 1)), (2, (0, 1, 2)), (8, (0, 4, 8))])
def test_few_lengths_are_compiled_and_none_where_there_are_no_drafts(most, lengths):
    assert draft_lengths(most) == lengths


def test_drafts_are_tried_first_and_long_ones_stay_where_they_stand():
    assert best(no_trials(4, 1)) > 0
    assert best(after(8)) == 8


def test_drafts_that_never_stand_are_given_up_and_tried_again_after_a_while():
    trials = after(0)
    assert best(trials) == 0
    assert best(add_trials(trials, jnp.zeros((4, 1), jnp.int32), 0)) == 0
    for _ in range(60):
        trials = add_trials(trials, jnp.zeros((4, 1), jnp.int32), 0)
    assert best(trials) > 0


def test_a_pass_without_free_arithmetic_has_drafts_only_if_nearly_all_stand(monkeypatch):
    monkeypatch.setattr(draft_length, "CPU_BALANCE", 0.01)
    assert best(after(2)) == 0
    monkeypatch.setattr(draft_length, "CPU_BALANCE", 1e9)
    assert best(after(2)) == 8  # nothing is lost by trying


def test_continuations_that_have_ended_do_not_count():
    trials = after(jnp.array([[8], [0], [0], [0]]))
    assert best(trials, jnp.array([[True], [False], [False], [False]])) == 8
    assert best(trials, jnp.array([[False], [True], [True], [True]])) == 0


def test_the_choice_is_that_of_the_largest_simulated_rate():
    """Tokens a pass of continuations whose drafts stand independently, by drawing them."""
    rng = np.random.default_rng(0)
    for chance in (0.05, 0.3, 0.5, 0.7, 0.9):
        stands = np.cumprod(rng.random((200_000, max(LENGTHS))) < chance, axis=1)
        rates = {
            length: (1 + stands[:, :length].sum(axis=1).mean())
            / (1 + ACTIVE.size * (length + 1) / draft_length.CPU_BALANCE)
            for length in LENGTHS
        }
        many = 1e6
        trials = draft_length.Trials(jnp.full((4, 1), chance * many), jnp.full((4, 1), many))
        assert best(trials) == max(rates, key=rates.__getitem__)
