"""A result that is not finite is an error that names its row, and never a row; rows beside it are as they were."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from common.generation.generate import generate_rows, make_scorer, qwen2_slots, score_rows
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.finite import check_finite, precision_remedy
from common.training.parallel import make_device_layout
from tests import tiny
from tests.overflow import LOUD, overflowing

HALF = dataclasses.replace(tiny.CONFIG, dtype="float16", param_dtype="float16")
PROMPTS = [[4, 7, 9], [4, LOUD, 9], [8] * 5, [LOUD]]
ONE = make_device_layout("jit")
FINITE = [True, False, True, False]
WAYS = {
    "greedy": DecodeSettings(5, forbidden_ids=(2, LOUD)),
    "sampling": DecodeSettings(5, Sampling(1.0, top_k=20, top_p=0.9), forbidden_ids=(LOUD,)),
    "groups": DecodeSettings(5, Sampling(1.0), group=3, forbidden_ids=(LOUD,)),
    "beams": DecodeSettings(5, beams=3, stop_ids=(5,), forbidden_ids=(LOUD,)),
}


def half(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16), tree)


@pytest.mark.parametrize("way", WAYS)
def test_generation_tells_which_rows_overflow_and_leaves_the_others_alone(way):
    params = overflowing(tiny.params())
    slots = qwen2_slots(HALF, WAYS[way], 4, ONE)
    found = list(generate_rows(slots, {"params": half(params)}, PROMPTS, range(4)))
    assert [all(sample.finite for sample in row) for row in found] == FINITE
    assert [any(sample.finite for sample in row) for row in found] == FINITE
    # Two rows of their own: the same as beside those that overflow.
    alone = list(generate_rows(slots, {"params": half(params)}, PROMPTS[::2] * 2, [0, 2, 0, 2]))
    assert [found[0], found[2]] == alone[:2]
    for row in (found[0], found[2]):
        assert all(np.isfinite(sample.log_probs).all() for sample in row)


def test_float32_holds_what_float16_does_not():
    slots = qwen2_slots(tiny.CONFIG, WAYS["groups"], 4, ONE)
    found = generate_rows(slots, {"params": overflowing(tiny.params())}, PROMPTS, range(4))
    assert all(sample.finite for row in found for sample in row)


def test_a_low_temperature_may_overflow_float32():
    """Logits are finite here, and divided by the temperature they are not."""
    params = tiny.params()
    params = {**params, "lm_head": params["lm_head"] * 1e36}
    slots = qwen2_slots(tiny.CONFIG, DecodeSettings(2, Sampling(1e-6)), 1, ONE)
    ((sample,),) = generate_rows(slots, {"params": params}, [[4]], [0])
    assert not sample.finite


def test_scores_of_what_overflows_are_not_numbers():
    scorer, variables = make_scorer(HALF), {"params": half(overflowing(tiny.params()))}
    found = score_rows(scorer, variables, PROMPTS, [[4, 5]] * 4, 4)
    assert [bool(np.isfinite(row).all()) for row in found] == FINITE


def test_the_error_names_the_first_row_and_what_to_do():
    check_finite([True, True], ["a", 2], "the logits", "do it")
    with pytest.raises(UserError, match=r"^id 2 \(and 1 more\): the logits are not finite \(NaN or infinity\); do it$"):
        check_finite([True, False, False], ["a", 2, 3], "the logits", "do it")
    assert "(--dtype)" in precision_remedy("float16", "--dtype")
    assert "damaged" in precision_remedy("bfloat16")
