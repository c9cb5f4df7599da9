"""Which attention runs where, that the shapes of parameters do not depend on it, and that it is JAX's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from common.models.attention import attend_to, attention_line, check_implementation
from common.models.qwen2_weights import param_shapes
from common.models.seq2seq import Attention
from tests.runs import SIZES


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_shapes_do_not_ask_for_an_attention_that_this_platform_lacks(implementation):
    assert param_shapes(dataclasses.replace(SIZES, attention=implementation)) == param_shapes(SIZES)


def test_an_attention_of_another_platform_is_refused(monkeypatch):
    check_implementation("auto")
    check_implementation("xla")
    for implementation, platform in (("splash", "TPU"), ("cudnn", "GPU")):
        with pytest.raises(UserError, match=f"{implementation} runs on a {platform}, but JAX found cpu; use"):
            check_implementation(implementation)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    check_implementation("splash")


def test_the_line_says_which_attention_runs_on_which_rows(monkeypatch):
    assert attention_line("auto", {64, 256}, 128, "float32") == "attention: xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    line = attention_line("auto", {256, 64, 128}, 128, "bfloat16")
    assert line == "attention: xla on rows of 64; splash on rows of 128, 256"


@pytest.mark.parametrize("mask", ["none", "keys", "positions"])
@pytest.mark.parametrize("shared", [4, 2])
def test_attention_and_its_gradients_are_those_of_jax(shared, mask):
    keys = jax.random.split(jax.random.key(0), 5)
    q, gradient = (3 * jax.random.normal(key, (2, 5, 4, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 7, shared, 8)) for key in keys[2:4])
    visible = jax.random.bernoulli(keys[4], 0.6, (2, {"keys": 1}.get(mask, 5), 7)).at[:, :, 3].set(True)
    visible = None if mask == "none" else visible

    def ours(q, k, v):
        return attend_to(q, k, v, visible)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=None if visible is None else visible[:, None])

    found, of_ours = jax.vjp(ours, q, k, v)
    expected, of_theirs = jax.vjp(theirs, q, k, v)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=3e-6)
    for own, other in zip(of_ours(gradient), of_theirs(gradient), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-5)


def test_one_token_to_attend_to_is_read_whole_by_every_query():
    module = Attention(12, 3)
    x, memory = jax.random.normal(jax.random.key(1), (2, 5, 12)), jax.random.normal(jax.random.key(2), (2, 1, 12))

    def short(module, x, memory):
        return module.attend_single_token(x, module.keys_values(memory))

    def whole(module, x, memory):
        return module(x, module.keys_values(memory))

    params = module.init(jax.random.key(0), x, memory, method=short)
    other = module.init(jax.random.key(0), x, memory, method=whole)
    jax.tree.map(np.testing.assert_array_equal, params, other)

    def squared(params, method):
        return jnp.square(jnp.broadcast_to(module.apply(params, x, memory, method=method), x.shape)).sum()

    found, expected = (jax.value_and_grad(squared)(params, method) for method in (short, whole))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5), found, expected)
    assert not found[1]["params"]["q_proj"]["kernel"].any()
