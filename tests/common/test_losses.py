"""Log-probabilities without logits: equal to the dense form, values and gradients, in a fraction of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.training import vocabulary
from common.training.losses import answer_loss, token_logprobs

B, S, D, V = 3, 13, 16, 102


@pytest.fixture(params=[8192, 8], ids=["one tile", "six tiles"])
def case(request, monkeypatch):
    monkeypatch.setattr(vocabulary, "TILE", request.param)
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, S, D))
    head = jax.random.normal(keys[1], (V, D))
    targets = jax.random.randint(keys[2], (B, S), 0, V)
    cotangent = jax.random.normal(keys[3], (B, S))
    return hidden, head, targets, cotangent


def dense(hidden, head, targets):
    logits = jax.nn.log_softmax(hidden @ head.T)
    return jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 128])
def test_values_and_gradients_are_those_of_the_dense_form(case, chunk, head_trained):
    hidden, head, targets, cotangent = case

    def chunked(hidden, head):
        logp = token_logprobs(hidden, head, targets, chunk=chunk, head_trained=head_trained)
        return (logp * cotangent).sum(), logp

    def reference(hidden, head):
        logp = dense(hidden, head, targets)
        return (logp * cotangent).sum(), logp

    (_, logp), gradients = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
    (_, expected), wanted = jax.value_and_grad(reference, argnums=(0, 1), has_aux=True)(hidden, head)
    assert logp.shape == (B, S)
    assert logp.dtype == jnp.float32
    np.testing.assert_allclose(logp, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], wanted[0], atol=1e-5, rtol=1e-5)
    if head_trained:
        np.testing.assert_allclose(gradients[1], wanted[1], atol=1e-5, rtol=1e-5)
    else:
        assert not gradients[1].any()


@pytest.mark.parametrize("head_trained", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_positions_that_are_not_wanted_are_zero_and_have_no_gradient(case, share, head_trained):
    hidden, head, targets, cotangent = case
    wanted = jax.random.uniform(jax.random.key(1), (B, S)) < share

    def chunked(hidden, head):
        logp = token_logprobs(hidden, head, targets, wanted=wanted, chunk=4, head_trained=head_trained)
        return (logp * cotangent).sum(), logp

    def reference(hidden, head):
        logp = jnp.where(wanted, dense(hidden, head, targets), 0)
        return (logp * cotangent).sum(), logp

    (_, logp), gradients = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, head)
    (_, expected), right = jax.value_and_grad(reference, argnums=(0, 1), has_aux=True)(hidden, head)
    np.testing.assert_allclose(logp, expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], right[0], atol=1e-5, rtol=1e-5)
    assert not gradients[0][~wanted].any()
    if head_trained:
        np.testing.assert_allclose(gradients[1], right[1], atol=1e-5, rtol=1e-5)


def test_a_tied_head_gets_both_of_its_gradients(case):
    _, head, targets, cotangent = case
    tokens = jnp.roll(targets, 1, axis=1)

    def through(logprobs):
        return jax.grad(lambda head: (logprobs(jnp.tanh(head[tokens]), head, targets) * cotangent).sum())(head)

    chunked = through(lambda *arguments: token_logprobs(*arguments, chunk=4, head_trained=True))
    np.testing.assert_allclose(chunked, through(dense), atol=1e-5, rtol=1e-5)


def test_large_logits_stay_finite(case):
    hidden, head, targets, _ = case
    for head_trained in (False, True):
        value, gradient = jax.value_and_grad(
            lambda hidden, head_trained=head_trained: token_logprobs(
                hidden, head, targets, chunk=4, head_trained=head_trained
            ).sum()
        )(hidden * 1e4)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_answer_loss_is_a_sum_over_weighted_tokens():
    logp, weights = jnp.asarray([[-1.0, -2.0, -3.0]]), jnp.asarray([[0.0, 1.0, 0.5]])
    loss = answer_loss(logp, weights)
    assert float(loss.total) == 3.5
    assert float(loss.weight) == 1.5


@pytest.mark.parametrize("head_trained", [False, True])
def test_no_logits_of_the_whole_sequence_at_the_vocabulary_of_qwen2(head_trained):
    batch, length, width, vocabulary, chunk = 2, 2048, 64, 151_936, 64
    shapes = (
        jax.ShapeDtypeStruct((batch, length, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )

    def loss(hidden, head, targets):
        return token_logprobs(hidden, head, targets, chunk=chunk, head_trained=head_trained).sum()

    def temporary_bytes(function, argnums):
        return jax.jit(jax.grad(function, argnums)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits_bytes = batch * length * vocabulary * 4
    argnums = (0, 1) if head_trained else 0
    used = temporary_bytes(loss, argnums)
    # A few tiles of logits, a sixteenth of the vocabulary each, and a few arrays as large as the hidden states.
    expected = 4 * (batch * chunk * vocabulary // 16 + batch * length * width) * 4
    assert used < expected < logits_bytes / 100
    assert temporary_bytes(lambda *arguments: dense(*arguments).sum(), argnums) > logits_bytes


@pytest.mark.parametrize("head_trained", [False, True])
def test_forbidden_tokens_are_left_out_of_the_softmax(case, head_trained):
    hidden, head, targets, cotangent = case
    forbidden = jnp.zeros(V, bool).at[jnp.array([0, 7, V - 1])].set(True)
    targets = jnp.where(forbidden[targets], 1, targets)

    def chunked(hidden, head):
        return (
            token_logprobs(hidden, head, targets, chunk=4, head_trained=head_trained, forbidden=forbidden) * cotangent
        ).sum()

    def reference(hidden, head):
        logits = jax.nn.log_softmax(jnp.where(forbidden, -jnp.inf, hidden @ head.T))
        return (jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] * cotangent).sum()

    value, gradients = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, head)
    expected, wanted = jax.value_and_grad(reference, argnums=(0, 1))(hidden, head)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(gradients[0], wanted[0], atol=1e-5, rtol=1e-5)
    if head_trained:
        np.testing.assert_allclose(gradients[1], wanted[1], atol=1e-5, rtol=1e-5)
