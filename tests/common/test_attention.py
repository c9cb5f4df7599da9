"""Which attention runs where, that the shapes of parameters do not depend on it, and that it is JAX's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from common.models.attention import attend_to
from common.models.attention_choice import (
    Shape,
    Use,
    announce_attention,
    attention_lines,
    check_implementation,
    choose,
    choose_implementation,
)
from common.models.qwen2 import attention_uses
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


def language(*lengths, head_dim=128, dtype="bfloat16"):
    return Use("language", "rows", [Shape(length, length, head_dim, dtype) for length in lengths])


def test_the_line_says_which_attention_runs_on_which_rows(monkeypatch):
    assert attention_lines([language(64, 256, dtype="float32")]) == ("attention: xla", [])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    line, warnings = attention_lines([language(256, 64, 128)])
    assert line == "attention: xla (language rows of 64); splash (language rows of 128, language rows of 256)"
    assert warnings == [
        "warning: attention without the fused kernel (language rows of 64): splash takes multiples of 128 positions, "
        "not 64; choose lengths that are multiples of 128"
    ]


TOWERS = [
    language(300),
    Use("continuations", "continuations", [Shape(255, 555, 128, "bfloat16")]),
    Use("vision", "image", [Shape(1024, 1024, 80, "bfloat16")]),
    Use("windows", "windows", [Shape(64, 64, 80, "bfloat16")]),
    Use("labeler", "labels", [Shape(512, 512, 64, "float32")]),
    Use("CLIP", "clip", [Shape(50, 50, 64, "float32")]),
]


def test_the_line_names_every_tower(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    line, warnings = attention_lines(TOWERS)
    assert line == "attention: cudnn (language, continuations, vision, windows); xla (labeler, CLIP)"
    assert not warnings  # the last two are so by design
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    line, warnings = attention_lines(TOWERS)
    assert line == "attention: xla (language, continuations, windows, labeler, CLIP); splash (vision)"
    assert [warning.partition("): ")[0] for warning in warnings] == [
        f"warning: attention without the fused kernel ({name}" for name in ("language", "continuations")
    ]


def test_what_writes_says_its_attention_once_and_nothing_on_a_cpu(monkeypatch, capsys):
    config = dataclasses.replace(SIZES, head_dim=128, dtype="bfloat16")
    announce_attention(attention_uses(config, 64))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for _ in range(2):
        announce_attention([*attention_uses(config, 64, 128), *TOWERS[4:5]])
    assert capsys.readouterr().err.splitlines() == [
        "warning: attention: xla (language): splash takes multiples of 128 positions, not 64",
        "attention: splash (language)",
        "attention: xla (new tokens)",
        "attention: xla (labeler)",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "float32"}, "cudnn takes bfloat16, not float32; choose --model.dtype bfloat16"),
        ({"head_dim": 160}, "cudnn takes heads of 8, 16, ... 128 channels, not 160; choose another base model"),
    ],
)
def test_a_kernel_that_cannot_be_had_is_a_warning_or_an_error_where_it_was_named(changes, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    line, warnings = attention_lines([language(300, **changes)])
    assert line == "attention: xla"
    assert warnings == [f"warning: attention without the fused kernel (language): {expected}"]
    assert attention_lines([language(300, **changes)], "xla") == ("attention: xla", [])
    with pytest.raises(UserError, match=r"^model.attention: cudnn: language: cudnn takes .*, or auto$"):
        attention_lines([language(300, **changes)], "cudnn")


def test_the_table():
    def found(operation, queries, keys, head_dim=128, dtype="bfloat16", platform="gpu"):
        return choose(operation, Shape(queries, keys, head_dim, dtype), platform=platform).implementation

    assert found("rows", 301, 301) == found("continuations", 255, 555) == found("image", 100, 100, 80) == "cudnn"
    assert found("windows", 64, 64, 80) == "cudnn"
    assert found("labels", 512, 512, 64) == found("clip", 50, 50, 64) == found("decode", 1, 300) == "xla"
    assert found("rows", 256, 256, platform="tpu") == found("image", 256, 256, 80, platform="tpu") == "splash"
    assert found("rows", 256, 256, 64, platform="tpu") == found("windows", 128, 128, platform="tpu") == "xla"
    assert found("continuations", 128, 384, platform="tpu") == "splash"
    assert found("continuations", 128, 360, platform="tpu") == found("continuations", 100, 384, platform="tpu") == "xla"
    assert choose_implementation("auto", 300, 128, jnp.dtype("bfloat16"), "gpu") == "cudnn"
    assert choose_implementation("auto", 300, 128, jnp.dtype("bfloat16"), "cpu") == "xla"


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
