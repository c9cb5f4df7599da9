"""Bases in 8 and 4 bits: their definitions, and logits and gradients as those of the weights that they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from common.errors import UserError
from common.generation.generate import make_generator
from common.generation.settings import DecodeSettings
from common.models.decoding import Prompts
from common.models.lora import init_lora, scaled
from common.models.quantized import BLOCK, NF4, STEP, WIDTH, from_nf4, quantized, to_int8, to_nf4
from common.models.qwen2 import SHARDING_RULES, Qwen2, output_head
from common.models.qwen2_weights import load_qwen2, save_qwen2
from common.training.parallel import MeshConfig, device_put_tree, make_device_layout
from common.training.sft import model_variables
from tests import tiny

CONFIG = dataclasses.replace(
    tiny.CONFIG, hidden_size=64, intermediate_size=128, num_attention_heads=4, head_dim=16, dtype="float32"
)
KINDS = ["int8", "nf4"]


def kernel(seed: int = 0, shape=(2, 128, 24)) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
    values[0, :, 3] = 0  # an output without weights
    return values


def test_int8_rounds_to_steps_of_each_output():
    values = kernel()
    found, step = to_int8(jnp.asarray(values))
    assert found.dtype == jnp.int8
    np.testing.assert_allclose(step[..., 0, :], np.abs(values).max(1) / 127, rtol=1e-6)
    assert np.abs(found * step - values).max() <= np.asarray(step).max() / 2 + 1e-8
    assert int(jnp.abs(found).max()) == 127
    assert not np.asarray(found)[0, :, 3].any()


def test_nf4_takes_the_nearest_quantile_of_its_block():
    values = kernel()
    packed, step = to_nf4(jnp.asarray(values))
    assert packed.shape == (2, 64, 24)
    table = np.array(NF4)
    for layer in range(2):
        found = np.asarray(from_nf4(packed[layer], step[layer], jnp.float32))
        for block, output in np.ndindex(128 // BLOCK, 24):
            own = values[layer, block * BLOCK : (block + 1) * BLOCK, output]
            most = np.abs(own).max()
            nearest = table[np.abs(own[:, None] - most * table).argmin(1)] * most
            np.testing.assert_allclose(found[block * BLOCK : (block + 1) * BLOCK, output], nearest, atol=1e-7)


def test_the_quantiles_are_those_of_a_normal_distribution():
    """As QLoRA makes them: 8 and 9 quantiles of either side, of which both have 0, relative to the outermost."""
    scipy_stats = pytest.importorskip("scipy.stats")
    offset = 0.5 * ((1 - 1 / (2 * 15)) + (1 - 1 / (2 * 16)))
    high = scipy_stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    low = -scipy_stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort([*high, 0.0, *low])
    np.testing.assert_allclose(values / np.abs(values).max(), NF4, atol=1e-3)


def read_back(params):
    """The kernels that quantized ones stand for."""
    leaves = flatten_dict(params)
    found = {}
    for path, leaf in leaves.items():
        if path[-1] == "int8":
            found[*path[:-1], "kernel"] = leaf * leaves[*path[:-1], STEP]
        elif path[-1] == "nf4":
            found[*path[:-1], "kernel"] = jax.vmap(lambda a, b: from_nf4(a, b, jnp.float32))(
                leaf, leaves[*path[:-1], STEP]
            )
        elif path[-1] != STEP:
            found[path] = leaf
    return unflatten_dict(found)


def value_and_gradient(params, adapter):
    batch = tiny.batch(rows=4)

    def loss(adapter):
        return tiny.lora_loss(adapter, params, batch, jax.random.key(0), config=CONFIG)[0].total

    return jax.jit(jax.value_and_grad(loss))(adapter)


@pytest.mark.parametrize("bits", KINDS)
def test_loss_and_gradient_are_those_of_the_kernels_that_are_read_back(bits):
    params = tiny.params(CONFIG)
    adapter = tiny.lora(params)
    own = quantized(params, bits)
    assert not any(path[-1] == "kernel" for path in flatten_dict(own["layers"]))
    (value, gradient), (expected, wanted) = (value_and_gradient(tree, adapter) for tree in (own, read_back(own)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, wanted)
    exact, _ = value_and_gradient(params, adapter)
    assert 0 < abs(float(value - exact)) / float(exact) < {"int8": 2e-3, "nf4": 5e-2}[bits]


@pytest.mark.parametrize("bits", KINDS)
def test_magnitudes_are_those_of_the_kernels_that_are_read_back(bits):
    own = quantized(tiny.params(CONFIG), bits)
    config = dataclasses.replace(tiny.LORA, dora=True)
    shapes = tiny.params(CONFIG)
    lora, wanted = (init_lora(shapes, config, jax.random.key(0), tree) for tree in (own, read_back(own)))
    lora, wanted = (tiny.moved(tree, 0.05, 1) for tree in (lora, wanted))
    found, expected = scaled(lora, config, own), scaled(wanted, config, read_back(own))
    assert "factor" in found["layers"]["mlp"]["up_proj"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


@pytest.mark.parametrize("bits", KINDS)
def test_greedy_reports_are_those_of_the_kernels_that_are_read_back(bits):
    params = tiny.moved(tiny.params(CONFIG), 0.2)
    own, settings = quantized(params, bits), DecodeSettings(8, stop_ids=(5,))
    prompts = Prompts(jnp.arange(12).reshape(3, 4) + 7, jnp.ones((3, 4), bool))
    adapter = scaled(tiny.lora(params), tiny.LORA, params)
    generate = make_generator(CONFIG, settings)
    found, expected = (
        generate({"params": tree, "lora": adapter}, prompts, jax.random.split(jax.random.key(0), 3)).tokens
        for tree in (own, read_back(own))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", KINDS)
def test_a_published_model_is_read_in_bits_and_split_over_devices(bits, tmp_path, material):
    params = tiny.params(CONFIG)
    save_qwen2(tmp_path / "model", CONFIG, params, source=material.base)
    layout = make_device_layout("mesh", MeshConfig(data=2, fsdp=2, tensor=2))
    _, read = load_qwen2(tmp_path / "model", param_dtype="bfloat16", bits=bits)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, read, quantized(rounded, bits))
    adapter = tiny.lora(params)
    placed, whole = device_put_tree(read, layout, SHARDING_RULES), read
    hidden = []
    for tree, context in ((whole, None), (placed, layout)):
        variables = model_variables(adapter, {"params": tree}, tiny.LORA)
        batch = tiny.batch(rows=4)

        def run(variables, batch=batch):
            read, _ = Qwen2(CONFIG).apply(variables, batch.tokens, batch.positions, batch.segments)
            return read @ output_head(variables["params"]).T.astype(read.dtype)

        if context is None:
            hidden.append(np.asarray(jax.jit(run)(variables)))
        else:
            with context.context():
                hidden.append(np.asarray(jax.jit(run)(variables)))
    np.testing.assert_allclose(*hidden, atol=2e-5)


def test_a_base_whose_layers_have_no_blocks_of_64_is_one_line(material):
    with pytest.raises(UserError, match=r"model.param_dtype nf4: needs layers whose inputs are multiples of 64, and"):
        load_qwen2(material.base, bits="nf4")


def test_bytes_are_counted_as_they_are_stored():
    for bits in KINDS:
        tree = jax.eval_shape(lambda bits=bits: quantized({"q_proj": {"kernel": jnp.zeros((2, 640, 512))}}, bits))
        stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        assert stored / (2 * 640 * 512) == pytest.approx(WIDTH[bits], rel=0.01)
