"""Statistics of tokens without logits are those of a plain logits tensor in float64, and so are their gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.training import vocabulary
from common.training.losses import token_logprobs
from common.training.token_statistics import TokenLogprobs, token_statistics

B, S, D, V = 3, 13, 16, 102
FIELDS = TokenLogprobs._fields
FORBIDDEN = jnp.zeros(V, bool).at[jnp.array([0, 7, V - 1])].set(True)


@pytest.fixture(params=[8192, 8], ids=["one tile", "six tiles"])
def case(request, monkeypatch):
    monkeypatch.setattr(vocabulary, "TILE", request.param)
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, head = jax.random.normal(keys[0], (B, S, D)), jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, S), 1, 7)
    wanted = jax.random.bernoulli(keys[3], 0.4, (B, S))
    return hidden, head, targets, wanted, jax.random.normal(keys[4], (len(FIELDS), B, S))


def plain(hidden, head, targets, wanted, forbidden) -> TokenLogprobs:
    logits = hidden @ head.T
    if forbidden is not None:
        logits = logits[..., ~forbidden]
        targets = targets - jnp.cumsum(forbidden)[targets]
    logp = jax.nn.log_softmax(logits)
    values = TokenLogprobs(
        jnp.take_along_axis(logp, targets[..., None], -1)[..., 0],
        jax.nn.logsumexp(logits, axis=-1),
        logp.mean(-1),
        -(jnp.exp(logp) * logp).sum(-1),
    )
    return values if wanted is None else TokenLogprobs(*(jnp.where(wanted, value, 0) for value in values))


def in_float64(hidden, head, targets, wanted, cotangents, forbidden):
    """Values of the plain form, and gradients of hidden states and head."""
    with jax.enable_x64(True):
        hidden, head, cotangents = (jnp.asarray(np.asarray(x), jnp.float64) for x in (hidden, head, cotangents))
        forbidden = None if forbidden is None else np.asarray(forbidden)
        form = functools.partial(plain, targets=targets, wanted=wanted, forbidden=forbidden)
        values, pull = jax.vjp(form, hidden, head)
        return jax.device_get((values, pull(TokenLogprobs(*cotangents))))


@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize(
    ("chunk", "some", "forbidden"),
    [
        *itertools.product((4, 128), (False, True), (None, FORBIDDEN)),
        (1, True, None),
    ],
)
def test_values_and_gradients_are_those_of_a_logits_tensor(case, chunk, some, forbidden, head_trained):
    hidden, head, targets, wanted, cotangents = case
    wanted = wanted if some else None

    @jax.jit
    def found(hidden, head):
        def form(hidden, head):
            return token_statistics(
                hidden, head, targets, wanted=wanted, chunk=chunk, head_trained=head_trained, forbidden=forbidden
            )

        values, pull = jax.vjp(form, hidden, head)
        return values, pull(TokenLogprobs(*cotangents))

    values, (of_hidden, of_head) = found(hidden, head)
    expected, (right_hidden, right_head) = in_float64(hidden, head, targets, wanted, cotangents, forbidden)
    for name in FIELDS:
        value = getattr(values, name)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, getattr(expected, name), rtol=2e-6, atol=5e-6, err_msg=name)
    np.testing.assert_allclose(of_hidden, right_hidden, rtol=1e-5, atol=1e-5)
    if head_trained:
        np.testing.assert_allclose(of_head, right_head, rtol=1e-5, atol=2e-5)
    else:
        assert not of_head.any()


@pytest.mark.parametrize("field", FIELDS)
def test_each_statistic_has_its_own_gradient(case, field):
    hidden, head, targets, wanted, cotangents = case
    cotangents = cotangents * (np.array(FIELDS) == field)[:, None, None]

    def total(hidden, head):
        values = token_statistics(hidden, head, targets, wanted=wanted, chunk=4, head_trained=True, forbidden=FORBIDDEN)
        return (getattr(values, field) * cotangents.sum(0)).sum()

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, head)
    _, expected = in_float64(hidden, head, targets, wanted, cotangents, FORBIDDEN)
    for own, right in zip(found, expected, strict=True):
        assert np.abs(right).max() > 0.1
        np.testing.assert_allclose(own, right, rtol=1e-5, atol=1e-5)


def test_log_probabilities_are_those_of_token_logprobs_and_large_logits_stay_finite(case):
    hidden, head, targets, wanted, _ = case
    arguments = {"wanted": wanted, "chunk": 4, "head_trained": True}
    alone = token_logprobs(hidden, head, targets, **arguments)
    np.testing.assert_allclose(token_statistics(hidden, head, targets, **arguments).logp, alone, rtol=1e-6, atol=1e-6)

    def total(hidden):
        return sum(value.sum() for value in token_statistics(hidden, head, targets, forbidden=FORBIDDEN, **arguments))

    value, gradient = jax.value_and_grad(total)(hidden * 1e4)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_no_logits_tensor_is_formed_at_the_vocabulary_of_qwen2():
    batch, length, width, tokens, chunk = 2, 2048, 64, 151_936, 64
    shapes = (
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )

    def total(hidden, head, targets):
        return sum(x.sum() for x in token_statistics(hidden, head, targets, chunk=chunk, head_trained=True))

    used = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    # A few tiles of logits, a sixteenth of the vocabulary each, and a few arrays as large as the hidden states.
    assert used < 4 * (batch * chunk * tokens // 16 + batch * length * width) * 4 < batch * length * tokens * 4 / 100
