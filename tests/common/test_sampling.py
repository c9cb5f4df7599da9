"""Truncation keeps what transformers keeps, and tokens are drawn with exactly the probabilities that are left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.generation.sampling import (
    Sampling,
    choose_tokens,
    draw,
    draw_nucleus,
    in_nucleus,
    keep_top_k,
    largest_threshold,
    row_uniforms,
)


def weights_of(logits):
    return jnp.exp(logits - logits.max(0))


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (7, 1.0), (0, 0.9), (0, 0.05), (0, 0.9999), (20, 0.7)])
def test_the_kept_tokens_are_those_of_transformers(top_k, top_p):
    torch = pytest.importorskip("torch", reason="transformers' logits processors need PyTorch")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    spread = np.geomspace(0.01, 30, 12)[:, None]  # from nearly uniform to nearly one token
    logits = (np.random.default_rng(0).normal(size=(12, 333)) * spread).astype(np.float32)
    expected = torch.tensor(logits)
    for warper in ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else []):
        expected = warper(None, expected)
    logits = jnp.asarray(logits.T)
    weights = weights_of(logits)
    top = keep_top_k(logits, weights, top_k)
    np.testing.assert_array_equal(top, np.where(top > 0, weights, 0))
    kept = top > 0
    if top_p < 1:
        inside = jax.vmap(lambda token: in_nucleus(top, jnp.full(top.shape[1], token), top_p))
        kept &= inside(jnp.arange(len(logits)))
    # Weights that underflow are no choice, kept or not.
    np.testing.assert_array_equal(kept, np.isfinite(expected.numpy().T) & (np.asarray(weights) > 0))


@pytest.mark.parametrize(("top_p", "points"), [(0.03, 2_000), (0.5, 20_000), (0.9, 20_000)])
def test_the_nucleus_is_drawn_in_proportion_and_nothing_else(top_p, points):
    """Chi-square of many draws; every draw but the accepted one is rejected by its own row alone."""
    weights = np.random.default_rng(1).exponential(size=64).astype(np.float32)
    order = np.argsort(-weights)
    before = np.concatenate([[0], np.cumsum(weights[order])[:-1]]) / weights.sum()
    nucleus = order[before < top_p]
    uniform = jax.random.uniform(jax.random.key(0), (points,))
    columns = jnp.broadcast_to(weights[:, None], (64, points))
    tokens = np.asarray(jax.jit(draw_nucleus, static_argnums=2)(columns, uniform, top_p))
    counts = np.bincount(tokens, minlength=64)
    assert set(np.flatnonzero(counts)) == set(nucleus)
    expected = points * weights[nucleus] / weights[nucleus].sum()
    chi_square = ((counts[nucleus] - expected) ** 2 / expected).sum()
    freedom = len(nucleus) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 1e-9
    alone = [int(draw_nucleus(columns[:, :1], uniform[i : i + 1], top_p)[0]) for i in range(5)]
    assert alone == tokens[:5].tolist()


@pytest.mark.parametrize("k", [1, 2, 9, 10])
def test_the_threshold_is_the_kth_largest_value_for_values_of_any_size_and_sign(k):
    values = jnp.array([[-3e38, -1.0, -1e-38, -0.0, 0.0, 1e-40, 2.5, 2.5, 7.0, 3e38], [-5.0] * 10]).T
    bound = largest_threshold(values, lambda bound: (values >= bound).sum(0) >= k)
    np.testing.assert_array_equal(bound, np.sort(values, axis=0)[-k])


@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_equally_spaced_uniforms_draw_each_token_in_proportion_to_its_weight(vocabulary):
    rng = np.random.default_rng(vocabulary)
    weights = rng.exponential(size=vocabulary).astype(np.float32) * (rng.random(vocabulary) < 0.6)
    points = 20_000
    uniform = (jnp.arange(points) + 0.5) / points
    tokens = np.asarray(jax.jit(draw)(jnp.broadcast_to(weights[:, None], (vocabulary, points)), uniform))
    counts = np.bincount(tokens, minlength=vocabulary)
    np.testing.assert_allclose(counts, points * weights / weights.sum(), atol=2)
    assert not counts[weights == 0].any()
    assert (np.diff(tokens) >= 0).all()


def test_the_ends_of_the_unit_interval_draw_tokens_of_weight():
    weights = jnp.zeros((300, 2)).at[140].set(1e-30).at[290].set(1.0)
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert draw(weights, jnp.array([0.0, largest])).tolist() == [140, 290]


def test_greedy_takes_the_first_of_the_likeliest_and_scores_it_at_temperature_one():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1]])).T
    tokens, log_probs = choose_tokens(logits, jnp.array([0.9, 0.9]), Sampling())
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(log_probs, np.log([0.4, 0.7]), rtol=1e-6)


def test_log_probs_are_after_temperature_and_forbidden_tokens_and_before_truncation():
    logits = jax.random.normal(jax.random.key(0), (50, 64)).at[3].set(-jnp.inf)
    uniform = jax.random.uniform(jax.random.key(1), (64,))
    tokens, log_probs = choose_tokens(logits, uniform, Sampling(0.7, top_k=5, top_p=0.8))
    expected = jax.nn.log_softmax(logits / 0.7, axis=0)
    np.testing.assert_allclose(log_probs, expected[tokens, jnp.arange(64)], atol=1e-5)
    assert (np.asarray(logits) > np.asarray(logits)[tokens, np.arange(64)]).sum(0).max() < 5


def test_a_rows_uniforms_depend_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    many = row_uniforms(keys, group=3, steps=6)
    np.testing.assert_array_equal(row_uniforms(keys[2:3], group=2, steps=4), many[2:3, :2, :4])
    assert len(np.unique(many)) == many.size


@pytest.mark.parametrize("top_p", [1e-9, 1e-45, 5e-324])
def test_a_tiny_nucleus_is_the_likeliest_token(top_p):
    logits = jax.random.normal(jax.random.key(3), (300, 4))
    uniform = jax.random.uniform(jax.random.key(4), (4,))
    tokens, _ = choose_tokens(logits, uniform, Sampling(temperature=1.0, top_p=top_p))
    np.testing.assert_array_equal(tokens, logits.argmax(0))
