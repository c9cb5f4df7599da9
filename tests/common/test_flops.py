"""Model FLOPs against a walk over the traced program's matrix products, XLA's own count, and published figures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2, Qwen2Config, output_head
from common.training.flops import (
    adapter_parameters,
    attended_pairs,
    forward_flops,
    matrix_parameters,
    peak_flops,
    sft_flops,
    train_flops,
    utilisation,
)
from tests import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, num_hidden_layers=1, vocab_size=512, hidden_size=64, head_dim=16)
ROWS, LENGTH = 2, 32


def logits(variables, tokens, config=CONFIG):
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = Qwen2(config).apply(variables, tokens, positions, ones)
    return hidden @ output_head(variables["params"]).T


def products(jaxpr, times=1) -> float:
    """FLOPs of every matrix product of a traced program, those in a scan as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += times * 2 * inner * math.prod(equation.outvars[0].aval.shape)
        repeated = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in jaxprs_in_params(equation.params):
            total += products(inner, repeated)
    return total


def gradient_products(loss, trained) -> float:
    """FLOPs of the matrix products in the gradient of `loss`, without those whose results nobody uses."""
    jaxpr = jax.make_jaxpr(jax.grad(loss))(trained).jaxpr
    return products(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def whole_square(length: int) -> float:
    # XLA's attention computes the square that the formula halves.
    return float(ROWS * length**2)


def test_forward_counts_every_matrix_product_of_the_program():
    config = dataclasses.replace(CONFIG, num_hidden_layers=3)
    variables = {"params": tiny.params(config)}
    tokens = jnp.ones((ROWS, LENGTH), jnp.int32)
    traced = jax.make_jaxpr(lambda v, t: logits(v, t, config))(variables, tokens)
    assert forward_flops(config, ROWS * LENGTH, whole_square(LENGTH)) == products(traced.jaxpr)


def test_forward_agrees_with_the_compiler_on_one_layer():
    # One layer, because the compiler counts a scanned layer once.
    tokens = jnp.ones((ROWS, LENGTH), jnp.int32)
    cost = jax.jit(logits).lower({"params": tiny.params(CONFIG)}, tokens).compile().cost_analysis()
    counted = forward_flops(CONFIG, ROWS * LENGTH, whole_square(LENGTH))
    assert counted < cost["flops"] < 1.1 * counted  # norms, softmax and rotations are the rest


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4), LoraConfig(rank=4, targets="(q|v)_proj")])
def test_training_counts_every_matrix_product_of_the_gradient(lora):
    config = dataclasses.replace(CONFIG, num_hidden_layers=4)
    base = tiny.params(config)
    tokens = jnp.ones((ROWS, LENGTH), jnp.int32)

    def loss(trained):
        variables = {"params": trained} if lora is None else {"params": base, "lora": trained}
        return jax.nn.logsumexp(logits(variables, tokens, config), axis=-1).sum()

    counted = train_flops(config, lora, ROWS * LENGTH, whole_square(LENGTH))
    assert gradient_products(loss, base if lora is None else tiny.lora(base, lora)) == counted


def test_each_segment_attends_to_half_of_its_own_square_and_padding_to_nothing():
    segments = np.array([[1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [0] * 8])
    brute = sum(0.5 for row in segments for i in range(8) for j in range(8) if row[i] == row[j] and row[i] > 0)
    assert attended_pairs(segments) == brute == (4**2 + 2**2 + 8**2) / 2


def test_a_batch_counts_its_real_tokens_only():
    batch = tiny.batch()
    wider = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 3), (0, 5))), batch)
    assert sft_flops(tiny.CONFIG, tiny.LORA, batch) == sft_flops(tiny.CONFIG, tiny.LORA, wider)
    assert sft_flops(tiny.CONFIG, None, batch) > 1.1 * sft_flops(tiny.CONFIG, tiny.LORA, batch)


def test_qwen_7b_has_its_published_number_of_parameters():
    # Qwen2.5-7B's card: 7.61 B parameters, 6.53 B without embeddings; PEFT prints 40,370,176 for rank 16.
    config = Qwen2Config()
    head = config.vocab_size * config.hidden_size
    assert matrix_parameters(config) + head == pytest.approx(7.61e9, rel=2e-3)
    assert matrix_parameters(config) - head == pytest.approx(6.53e9, rel=2e-3)
    assert adapter_parameters(config, LoraConfig(rank=16)) == 40_370_176
    assert sum(leaf.size for leaf in jax.tree.leaves(tiny.lora(tiny.params()))) == adapter_parameters(
        tiny.CONFIG, tiny.LORA
    )


class Device:
    def __init__(self, kind: str) -> None:
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("cpu", None),
    ],
)
def test_peaks_of_known_devices_and_none_of_others(kind, peak):
    assert peak_flops(Device(kind)) == peak
    used = utilisation(1e12, 0.5, [Device(kind)] * 2)
    assert used is None if peak is None else used == pytest.approx(1e12 / peak)


def test_the_mark_for_a_hopper_gpu():
    # 14.9k tokens/s at 7B, rank 16, 4,096 packed tokens of two segments is 45% of 989 TFLOP/s.
    flops = train_flops(Qwen2Config(), LoraConfig(rank=16), 4096, 2 * 2048**2 / 2)
    assert utilisation(flops * 14_900 / 4096, 1.0, [Device("NVIDIA H100")]) == pytest.approx(0.45, abs=0.005)
