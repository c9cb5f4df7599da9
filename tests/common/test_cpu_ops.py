"""The forms that only XLA for CPUs needs: they give what plain JAX gives, and other platforms compile none of them."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.models import bert, clip, cpu_ops, layers
from tests.programs import PROGRAMS, lowered, rearranged_stacks

UNROLLED = {"sampling", "saliency"}  # programs that run over layers apart on a CPU
COUNTED = ("dot_general", "convolution", "while", "transpose")  # as many however many layers a stack has


@pytest.fixture
def elsewhere(monkeypatch):
    """Programs are traced as on an accelerator."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def operations(text: str) -> collections.Counter[str]:
    return collections.Counter(re.findall(r"stablehlo\.(\w+)", text))


@pytest.mark.parametrize("name", ["LoRA step", "sampling", "CLIP", "UniCross step", "saliency"])
def test_only_programs_for_cpus_hold_the_forms_for_cpus(name, elsewhere, monkeypatch):
    many = PROGRAMS[name](4)
    (few,) = lowered(*PROGRAMS[name](2)[:2], "cuda")
    for other in lowered(*many[:2], "tpu", "cuda"):
        assert "optimization_barrier" not in other
        assert operations(other)["while"]
        assert not rearranged_stacks(many.weights, other)
    for operation in COUNTED:
        assert operations(other)[operation] == operations(few)[operation]
    monkeypatch.undo()
    (own,) = lowered(*many[:2], "cpu")
    if name != "LoRA step":
        assert "optimization_barrier" in own
    assert operations(own)["transpose"] > operations(other)["transpose"]
    if name in UNROLLED:
        assert operations(own)["dot_general"] > operations(other)["dot_general"]
        assert rearranged_stacks(many.weights, own)


@pytest.mark.parametrize("name", ["LoRA step", "CLIP", "saliency"])
def test_other_platforms_compute_the_same(name, monkeypatch):
    program = PROGRAMS[name](3)
    own = jax.jit(lambda *arguments: program.function(*arguments))(*program.arguments)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    plain = jax.jit(lambda *arguments: program.function(*arguments))(*program.arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), plain, own)


def test_a_labelers_layers_stay_stacked_on_an_accelerator(elsewhere, monkeypatch):
    params = PROGRAMS["saliency"](2).weights
    assert bert.unstack_layers(params) is params
    monkeypatch.undo()
    apart = bert.unstack_layers(params)
    assert len(apart["bert"]["layer"]) == 2
    assert jax.tree.structure(bert.unstack_layers(apart)) == jax.tree.structure(apart)


def test_the_gradients_of_a_product_are_those_of_jax():
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights, gradient = (
        jax.random.normal(key, shape) for key, shape in zip(keys, ((2, 5, 3), (3, 4), (2, 5, 4)), strict=True)
    )
    found, expected = (jax.vjp(form, x, weights)[1](gradient) for form in (cpu_ops.matmul, jnp.matmul))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_gradients_of_a_convolution_are_those_of_jax(size, elsewhere):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], (2, 6, 5, 3)), jax.random.normal(keys[1], (size, size, 3, 4))
    weights = jax.random.normal(keys[2], (2, 6, 5, 4))
    ours, own = (
        jax.grad(lambda x, kernel, form=form: (weights * form(x, kernel)).sum(), argnums=(0, 1))(x, kernel)
        for form in (cpu_ops.convolve, clip.convolve)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, own)


@pytest.mark.parametrize("shape", [(1,), (3, 21), (2, 50)])
def test_a_product_of_few_rows_is_the_product(shape):
    """Against numpy in float64; the errors of 24 additions in float32 stay below 1e-5."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(*shape, 24)), rng.normal(size=(40, 24))
    y = jax.jit(cpu_ops.matmul_few_rows)(jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_allclose(y, x @ weights.T, rtol=0, atol=1e-5)


def test_gelu_and_its_gradient_are_those_of_jax(elsewhere):
    x = jnp.linspace(-9, 9, 2001)
    np.testing.assert_allclose(cpu_ops.gelu(x), layers.gelu(x), atol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(cpu_ops.gelu))(x), jax.vmap(jax.grad(layers.gelu))(x), atol=2e-6)


@pytest.mark.parametrize("size", [1, 128, 300])
def test_the_first_of_the_largest_values_is_found(size):
    values = jax.random.randint(jax.random.key(0), (size, 50), -9, 9).astype(jnp.float32)
    values = values.at[:, 0].set(-jnp.inf)
    np.testing.assert_array_equal(cpu_ops.argmax(values), jnp.argmax(values, axis=0))


def test_what_is_written_after_a_read_is_what_was_to_be_written():
    new = [jnp.arange(24.0).reshape(2, 3, 1, 4), jnp.ones((5, 2, 3, 2, 2))]
    jax.tree.map(np.testing.assert_array_equal, cpu_ops.after(jnp.full((2, 3, 7), 1e30), new), new)
