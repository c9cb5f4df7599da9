"""The forms of attention for fused kernels: what they ask of the kernels is attention as plain XLA computes it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models import attention, attention_choice
from common.models.attention import SharedPrompt, attend, attend_shared_prompt
from common.models.qwen2 import Qwen2
from tests import tiny

KEYS = jax.random.split(jax.random.key(0), 4)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.fixture
def fused(monkeypatch):
    """Implementation `cudnn` in float32, computed by JAX's own form; returns the keywords of the calls."""
    calls = []
    whole = jax.nn.dot_product_attention

    def call(q, k, v, *, mask=None, implementation, **options):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0  # JAX takes no other lengths in training
        calls.append(options | {"mask": None if mask is None else mask.shape})
        return whole(q, k, v, mask=mask, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", call)
    monkeypatch.setattr(attention_choice, "refusal", lambda *_: ("", ""))
    return calls


def rows(length, heads=4, shared=2, dim=8, batch=2):
    shapes = [(batch, length, heads, dim), *[(batch, length, shared, dim)] * 2, (batch, length, heads, dim)]
    return [jax.random.normal(key, shape) for key, shape in zip(KEYS, shapes, strict=True)]


def with_gradients(form, q, k, v, gradient):
    @jax.jit
    def both(q, k, v, gradient):
        out, backward = jax.vjp(form, q, k, v)
        return out, *backward(gradient)

    return both(q, k, v, gradient)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [8, 7])
def test_rows(length, causal, packed, fused):
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 3, 3, 3, 3, 3]])[:, :length] if packed else None
    forms = (
        functools.partial(attend, segments=segments, causal=causal, implementation=name) for name in ("cudnn", "xla")
    )
    found, expected = (with_gradients(form, *rows(length)) for form in forms)
    jax.tree.map(close, found, expected)
    assert [call["is_causal"] for call in fused] == [causal]  # the triangle is no part of the mask
    masked = packed or (length == 7 and not causal)
    assert fused[0]["mask"] == ((2 if packed else 1, 1, 8, 8) if masked else None)


def alike(found, expected):
    """Gradients are sums of large terms that cancel: what is left of some is small beside the largest."""
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_rows_of_one_sequence_need_no_mask(fused):
    """A decoder's hidden states, keys, values and gradients with padding moved behind the tokens, and where it is."""
    config, batch = tiny.CONFIG, tiny.batch()
    params = tiny.params(config)
    length = batch.tokens.shape[1]
    lengths = np.linspace(1, length, len(batch.tokens)).astype(int)
    mask = np.arange(length) < lengths[:, None]
    weight = jax.random.normal(KEYS[0], (*mask.shape, config.hidden_size))

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def read(name, params, positions, mask):
        segments = mask if name == "cudnn" else mask.astype(jnp.int32)
        own = dataclasses.replace(config, attention=name)
        hidden, kept = Qwen2(own).apply({"params": params}, batch.tokens, positions, segments, keep=True)
        return (hidden * weight * mask[..., None]).sum(), (hidden, kept)

    for own in (mask[:, ::-1], mask, np.random.default_rng(0).permuted(mask, axis=1)):  # left, right, anywhere
        positions = np.maximum(np.cumsum(own, axis=1) - 1, 0)
        found, expected = (read(name, params, positions, own) for name in ("cudnn", "xla"))
        jax.tree.map(alike, found[1], expected[1])
        (hidden, kept), (expected_hidden, expected_kept) = found[0][1], expected[0][1]
        close(hidden[own], expected_hidden[own])
        jax.tree.map(lambda one, two, own=own: close(one[:, own], two[:, own]), kept, expected_kept)
    assert all(call == {"is_causal": True, "mask": None} for call in fused)


def shared_prompts(prompt, length, aligned):
    """Two prompts with three continuations each, of these lengths with padding."""
    lengths = np.array([[prompt - 2], [prompt]])
    first = np.arange(prompt) < lengths
    continued = np.arange(length) < np.array([[length, length - 1, 1], [2, length, length]])[..., None]
    return SharedPrompt(jnp.array(first if aligned else first[:, ::-1]), jnp.array(continued), tokens_first=aligned)


@pytest.mark.parametrize(
    ("prompt", "length", "aligned"), [(6, 4, True), (6, 4, False), (5, 4, True), (5, 3, False), (6, 3, True)]
)
def test_continuations_of_a_shared_prompt(prompt, length, aligned, fused):
    segments = shared_prompts(prompt, length, aligned)
    tokens = jnp.concatenate([segments.prompt, segments.continuations.reshape(2, -1)], axis=1)[..., None, None]
    q, k, v, gradient = rows(prompt + 3 * length)
    forms = (functools.partial(attend_shared_prompt, rows=segments, implementation=name) for name in ("cudnn", "xla"))
    found, expected = (with_gradients(form, q, k, v, gradient * tokens) for form in forms)
    close(found[0] * tokens, expected[0] * tokens)
    jax.tree.map(close, found[1:], expected[1:])
    assert [call["is_causal"] for call in fused] == [True, False]
    assert (fused[0]["mask"] is None) is aligned


@pytest.mark.parametrize("name", ["rows", "continuations"])
def test_the_kernel_of_tpus_computes_the_same(name, monkeypatch):
    """By Pallas's interpreter, at the least sizes that splash takes."""
    monkeypatch.setattr(attention, "_splash", functools.partial(attention._splash, interpret=True))
    if name == "rows":
        segments = jnp.repeat(jnp.array([[1, 2]]), 64, axis=1)
        form = functools.partial(attend, segments=segments)
        q, k, v, gradient = rows(128, heads=2, shared=1, dim=128, batch=1)
        tokens = jnp.ones(())
    else:
        whole = shared_prompts(128, 128, aligned=False)
        segments = jax.tree.map(lambda leaf: leaf[:1, :2] if leaf.ndim == 3 else leaf[:1], whole)
        form = functools.partial(attend_shared_prompt, rows=segments)
        q, k, v, gradient = rows(3 * 128, heads=2, shared=1, dim=128, batch=1)
        tokens = jnp.concatenate([segments.prompt, segments.continuations.reshape(1, -1)], axis=1)[..., None, None]
    found, expected = (
        with_gradients(functools.partial(form, implementation=name), q, k, v, gradient * tokens)
        for name in ("splash", "xla")
    )
    close(found[0] * tokens, expected[0] * tokens)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found[1:], expected[1:])
