"""FLOPs of a trace against XLA's own count, where no loop hides anything from it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models.lora import LoraConfig, init_lora
from common.training.flops import attended_pairs, attention_flops, sft_flops
from common.training.sft import sft_loss
from common.training.traced_flops import Runs, traced_flops, update_flops
from tests import tiny


def by_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_products_and_convolutions_and_their_gradients(stride):
    x, kernel, matrix = jnp.ones((2, 40, 40, 24)), jnp.ones((2, 2, 24, 32)), jnp.ones((32, 48))

    def loss(x, kernel, matrix):
        return jnp.square(jnp.einsum("bhwc,cd->bhwd", conv(x, kernel, stride), matrix)).sum()

    for function in (loss, jax.grad(loss, argnums=(0, 1, 2))):
        counted = traced_flops(function, x, kernel, matrix)
        assert counted == pytest.approx(by_xla(function, x, kernel, matrix), rel=0.1)


def test_batched_products():
    q, k = jnp.ones((2, 5, 4, 16)), jnp.ones((2, 7, 4, 16))
    assert traced_flops(functools.partial(jnp.einsum, "bshd,bthd->bhst"), q, k) == 2 * 2 * 4 * 5 * 7 * 16


def test_a_loop_counts_as_often_as_it_runs():
    x = jnp.ones((8, 8))
    product = 2 * 8**3

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]

    def looped(x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, jax.jit(scanned), x)

    assert traced_flops(scanned, x) == 5 * product
    assert traced_flops(looped, x, runs=Runs(3)) == 15 * product
    assert traced_flops(jax.jit(jax.grad(lambda x: scanned(x).sum())), x) == pytest.approx(15 * product)


@pytest.mark.parametrize(("share", "counts"), [(None, 1), (0.0, 1 / 4), (0.25, 7 / 16), (1.0, 1)])
def test_a_branch_counts_as_often_as_it_is_taken(share, counts):
    x, wide = jnp.ones((8, 16)), jnp.ones((16, 32))

    def loss(wide, x, full):
        branches = lambda x: x @ wide, lambda x: jnp.tile(x @ wide[:, :8], 4)
        return jax.lax.scan(lambda sum_, one: (sum_ + jax.lax.cond(one, *branches, x), None), jnp.zeros((8, 32)), full)[
            0
        ]

    full, runs = jnp.zeros(5, bool), Runs(true_share=share)
    product = 2 * 8 * 16 * 32
    assert traced_flops(loss, wide, x, full, runs=runs) == pytest.approx(5 * product * counts)
    assert update_flops(loss, wide, x, full, runs=runs) == pytest.approx(2 * 5 * product * counts)


def test_an_update_costs_each_product_again_for_every_factor_that_is_trained():
    x, first, second = jnp.ones((5, 8)), jnp.ones((8, 16)), jnp.ones((16, 4))

    def loss(trained, frozen, x):
        whole = {**frozen, **trained}
        return jnp.square(jax.nn.relu(x @ whole["first"]) @ whole["second"]).sum()

    one, two = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
    both = {"first": first, "second": second}
    assert update_flops(loss, both, {}, x) == 2 * one + 3 * two
    assert update_flops(loss, {"second": second}, {"first": first}, x) == one + 2 * two
    assert update_flops(loss, {"first": first}, {"second": second}, x) == 2 * one + 2 * two


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("lora", [True, False])
def test_an_update_of_a_language_model_costs_what_the_formula_says(lora, remat):
    """The formula counts half of attention's square, and no product with an embedding that is only looked up."""
    config = dataclasses.replace(tiny.CONFIG, remat=remat)
    adapters = LoraConfig(rank=2, alpha=4.0, dropout=0.0)
    params = tiny.params()
    trees = (init_lora(params, adapters, jax.random.key(0), params), {"params": params}) if lora else (params, {})
    batch = tiny.batch(4)
    batch = batch.replace(weights=np.ones_like(batch.weights), segments=np.ones_like(batch.segments))

    def loss(trainable, frozen, batch):
        return sft_loss(trainable, frozen, batch, None, config=config, lora=adapters, chunk=4)[0].total

    length = batch.tokens.shape[1]
    counted = update_flops(loss, *trees, batch, runs=Runs(-(-length // 4)))
    attention = 3 * attention_flops(config, attended_pairs(batch.segments))  # the square's other half
    head = 2.0 * batch.tokens.size * config.vocab_size * config.hidden_size
    expected = sft_flops(config, adapters if lora else None, batch) + attention
    assert counted == pytest.approx(expected, abs=0.2 * head)
