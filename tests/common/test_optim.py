"""Optimizer and schedules against values worked out by hand and a plain NumPy AdamW."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from common.errors import UserError
from common.training.optim import OptimConfig, make_optimizer, make_schedule
from tests import tiny


def huggingface_cosine(step: int, warmup: int, total: int) -> float:
    """The factor of transformers' `get_cosine_schedule_with_warmup`."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


@pytest.mark.parametrize(("ratio", "warmup"), [(0.03, 6), (0.0, 0), (0.1, 20), (0.001, 1), (1.0, 200)])
def test_cosine_with_warmup_is_that_of_transformers(ratio, warmup):
    schedule = make_schedule(OptimConfig(learning_rate=3e-5, warmup_ratio=ratio), 200)
    for step in (0, 1, 5, 6, 7, 19, 20, 21, 100, 199):
        expected = 3e-5 * huggingface_cosine(step, warmup, 200)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_schedules_by_hand():
    # 100 steps, of which ceil(0.03 * 100) = 3 rise.
    def values(name: Literal["constant", "linear", "cosine"]) -> list[float]:
        schedule = make_schedule(OptimConfig(learning_rate=1.0, schedule=name, warmup_ratio=0.03), 100)
        return [round(float(schedule(step)), 4) for step in (0, 1, 2, 3, 51, 52, 100)]

    assert values("constant") == [0.0, 0.3333, 0.6667, 1.0, 1.0, 1.0, 1.0]
    assert values("linear") == [0.0, 0.3333, 0.6667, 1.0, 0.5052, 0.4948, 0.0]
    assert values("cosine") == [0.0, 0.3333, 0.6667, 1.0, 0.5081, 0.4919, 0.0]


@pytest.mark.parametrize(
    "changed", [{"warmup_ratio": 1.1}, {"warmup_ratio": -0.1}, {"learning_rate": math.inf}, {"eps": 0.0}]
)
def test_shares_and_rates_are_checked(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        make_schedule(OptimConfig(**changed), 10)


def test_decay_takes_matrices_and_spares_biases_and_norms():
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(tiny.params))
    config = OptimConfig(learning_rate=0.1, schedule="constant", warmup_ratio=0.0, weight_decay=0.5)
    tx = make_optimizer(config, 10)
    updates, _ = jax.jit(tx.update)(jax.tree.map(np.zeros_like, params), jax.jit(tx.init)(params), params)
    for path, update in flatten_dict(updates, sep="/").items():
        matrix = path.endswith("kernel") or path in ("embed_tokens", "lm_head")
        np.testing.assert_allclose(update, -0.05 if matrix else 0.0, rtol=1e-6, err_msg=path)


def test_updates_are_those_of_a_plain_adamw_with_clipping():
    config = OptimConfig(learning_rate=0.1, schedule="linear", warmup_ratio=0.2, weight_decay=0.3, clip_norm=2.0)
    tx = make_optimizer(config, 10)
    random = np.random.default_rng(0)
    expected = random.normal(size=(4, 3))
    params = {"kernel": jnp.asarray(expected, jnp.float32)}
    update = jax.jit(tx.update)
    state, mean, square = tx.init(params), np.zeros((4, 3)), np.zeros((4, 3))
    for step in range(6):
        gradient = random.normal(size=(4, 3)) * (0.1 if step % 2 else 10.0)
        updates, state = update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        clipped = gradient * min(1.0, 2.0 / np.linalg.norm(gradient))
        mean, square = 0.9 * mean + 0.1 * clipped, 0.999 * square + 0.001 * clipped**2
        rate = 0.1 * (step / 2 if step < 2 else 1 - (step - 2) / 8)
        direction = mean / (1 - 0.9 ** (step + 1)) / (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
        expected = expected - rate * (direction + 0.3 * expected)
        np.testing.assert_allclose(params["kernel"], expected, rtol=1e-4, atol=1e-5)
