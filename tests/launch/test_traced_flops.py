"""FLOPs of a trace against XLA's own count, where no loop hides anything from it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from launch.traced_flops import traced_flops


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
    assert traced_flops(looped, x, iterations=3) == 15 * product
    assert traced_flops(jax.jit(jax.grad(lambda x: scanned(x).sum())), x) == pytest.approx(15 * product)
