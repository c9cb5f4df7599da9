"""Dropout keeps the right share and shows no pattern over positions or keys; products and gradients written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models.clip import convolve, convolve_at_stride_1
from common.models.layers import dropout, gelu, matmul_few_rows


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_kept_share_and_the_scale(rate):
    out = np.asarray(dropout(jnp.ones((8, 256, 512)), rate, jax.random.key(0)))
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-6)
    share = (out == 0).mean()
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / out.size)


def test_masks_of_neighbours_and_of_other_keys_are_independent():
    """Correlations of a million fair draws: each within 5 standard deviations of 0, the widths of layers included."""
    masks = [np.asarray(dropout(jnp.ones((4, 256, 1024)), 0.5, jax.random.key(seed))) > 0 for seed in range(6)]
    flat = masks[0].ravel() * 2.0 - 1

    def correlation(other):
        return (flat[: len(other)] * (other * 2.0 - 1)).mean()

    limit = 5 / np.sqrt(flat.size / 2)
    for shift in (1, 2, 3, 31, 64, 1024, 1025, 256 * 1024):
        assert abs(correlation(masks[0].ravel()[shift:])) < limit
    for other in masks[1:]:
        assert abs(correlation(other.ravel())) < limit
    # Sums of rows and of columns scatter as binomial ones do.
    for axis, count in ((2, 1024), (1, 256)):
        sums = masks[0].sum(axis)
        assert abs(sums.var() / (count / 4) - 1) < 5 * np.sqrt(2 / sums.size)


def test_every_group_of_eight_draws_is_equally_frequent():
    """Chi-square of the 256 patterns of eight consecutive draws."""
    bits = (np.asarray(dropout(jnp.ones(2**20), 0.5, jax.random.key(3))) > 0).reshape(-1, 8)
    counts = np.bincount(bits @ (2 ** np.arange(8)), minlength=256)
    expected = len(bits) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_the_gradient_passes_where_the_value_did():
    x, key = jnp.arange(1.0, 1001.0), jax.random.key(4)
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(x)
    np.testing.assert_allclose(gradient, np.asarray(dropout(x, 0.3, key)) / np.asarray(x), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_gradients_of_a_convolution_are_those_of_jax(size):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 6, 5, 3)), jax.random.normal(keys[1], (size, size, 3, 4))
    weights = jax.random.normal(keys[2], (2, 6, 5, 4))
    ours, own = (
        jax.grad(lambda x, kernel, form=form: (weights * form(x, kernel)).sum(), argnums=(0, 1))(x, kernel)
        for form in (convolve_at_stride_1, convolve)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, own)


@pytest.mark.parametrize("shape", [(1,), (3, 21), (2, 50)])
def test_a_product_of_few_rows_is_the_product(shape):
    """Against numpy in float64; the errors of 24 additions in float32 stay below 1e-5."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(*shape, 24)), rng.normal(size=(40, 24))
    y = jax.jit(matmul_few_rows)(jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(y, x @ weights.T, rtol=0, atol=1e-5)


def test_gelu_and_its_gradient_are_those_of_jax():
    x = jnp.linspace(-9, 9, 2001)
    exact = functools.partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), exact(x), atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), jax.vmap(jax.grad(exact))(x), atol=2e-6)
