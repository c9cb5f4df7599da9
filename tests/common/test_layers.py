"""Dropout keeps the right share and shows no pattern over positions or keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models.layers import dropout


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
