"""The same batch gives the same update however it is cut: devices, mesh axes, accumulation (contract 2)."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from common.models.qwen2 import SHARDING_RULES
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import (
    MeshConfig,
    check_heads,
    check_rows,
    compile_step,
    device_put_tree,
    gathered,
    make_device_layout,
    place_batch,
)
from common.training.step import init_state, make_train_step
from tests import tiny

OPTIM = OptimConfig(learning_rate=1e-2, warmup_ratio=0.0, schedule="constant", weight_decay=0.1, clip_norm=0.1)


def run(mode, mesh: MeshConfig, accumulate: int, steps: int = 2):
    layout = make_device_layout(mode, mesh)
    tx = make_optimizer(OPTIM, 10)
    base = tiny.params()
    frozen = device_put_tree(base, layout, SHARDING_RULES)
    state = device_put_tree(init_state(tiny.lora(base), tx), layout, SHARDING_RULES)
    rng = device_put_tree(jax.random.key(0), layout)
    step = compile_step(lambda axis: make_train_step(tiny.lora_loss, tx, accumulate, axis), layout)
    rows = []
    for index in range(steps):
        batch = place_batch(tiny.batch(rows=64, seed=index), layout)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, frozen, batch, rng)
            jax.block_until_ready(state)
        rows.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state.trainable), rows


@pytest.fixture(scope="module")
def reference():
    return run("jit", MeshConfig(), 1)


@pytest.mark.parametrize(
    ("mode", "mesh", "accumulate"),
    [
        ("jit", MeshConfig(), 2),
        ("jit", MeshConfig(), 8),
        ("pmap", MeshConfig(), 1),
        ("pmap", MeshConfig(), 8),
        ("mesh", MeshConfig(), 1),
        ("mesh", MeshConfig(data=2, fsdp=2, tensor=2), 2),
        ("mesh", MeshConfig(data=1, fsdp=8), 8),
    ],
    ids=lambda value: f"{value.data}x{value.fsdp}x{value.tensor}" if isinstance(value, MeshConfig) else str(value),
)
def test_update_does_not_depend_on_how_the_batch_is_cut(reference, mode, mesh, accumulate):
    trainable, rows = run(mode, mesh, accumulate)
    # Float32 sums in another order: gradients differ by about 1e-6 relative, and Adam's first steps are
    # learning_rate * g / |g|, so parameters agree to well under a thousandth of one update (1e-2).
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), trainable, reference[0])
    for row, expected in zip(rows, reference[1], strict=True):
        for name in ("loss", "grad_norm", "weight", "perplexity"):
            assert row[name] == pytest.approx(expected[name], rel=2e-5), name


def test_mean_of_device_means_would_be_caught():
    # The batches really have unequal numbers of answer tokens per device, or the test above could not fail.
    weights = tiny.batch(rows=64).weights.reshape(8, -1).sum(axis=1)
    assert weights.max() > 1.2 * weights.min()


def test_parameters_are_split_over_the_mesh():
    layout = make_device_layout("mesh", MeshConfig(data=2, fsdp=2, tensor=2))
    kernel = device_put_tree(tiny.params(), layout, SHARDING_RULES)["layers"]["mlp"]["up_proj"]["kernel"]
    shape = kernel.shape
    assert kernel.addressable_shards[0].data.shape == (shape[0], shape[1] // 2, shape[2] // 2)


def test_heads_are_split_over_as_many_parts_as_have_keys():
    layout = make_device_layout("mesh", MeshConfig(data=1, fsdp=1, tensor=8))
    check_heads(8, layout)
    check_heads(2, make_device_layout("jit"))
    with pytest.raises(
        UserError, match=r"mesh.tensor: 8 parts do not split the model's 6 key/value heads; choose 1, 2, 3"
    ):
        check_heads(6, layout)


def test_one_device_is_not_for_several_hosts():
    devices: Any = [SimpleNamespace(process_index=number) for number in (0, 1)]
    with pytest.raises(UserError, match="jit runs on one device, but there are 2 hosts; choose auto, pmap or mesh"):
        make_device_layout("jit", devices=devices)


def test_a_non_finite_gradient_changes_nothing_and_is_counted():
    layout = make_device_layout("pmap")
    tx = make_optimizer(OPTIM, 10)

    def exploding(trainable, frozen, batch, rng):
        loss, aux = tiny.lora_loss(trainable, frozen, batch, rng)
        # One device of eight sees a NaN; all must skip.
        bad = jnp.where(jax.lax.axis_index("devices") == 3, jnp.nan, 1.0)
        return loss.replace(total=loss.total * bad), aux

    base = tiny.params()
    before = jax.device_get(tiny.lora(base))
    state = device_put_tree(init_state(before, tx), layout)
    step = compile_step(lambda axis: make_train_step(exploding, tx, 1, axis), layout)
    state, metrics = step(
        state,
        device_put_tree(base, layout),
        place_batch(tiny.batch(64), layout),
        device_put_tree(jax.random.key(0), layout),
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.trainable), before)
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == int(state.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.opt_state)))


@pytest.mark.parametrize("mesh", [MeshConfig(data=3), MeshConfig(data=2, fsdp=2, tensor=1), MeshConfig(-1, -1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(mesh):
    with pytest.raises(UserError, match="mesh: data="):
        make_device_layout("mesh", mesh)


def test_rows_that_do_not_split_evenly_are_refused():
    layout = make_device_layout("mesh")
    with pytest.raises(UserError, match="multiple of 16"):
        check_rows(24, 2, layout)
    check_rows(32, 2, layout)


def test_weights_of_a_loop_are_gathered_over_fsdp_and_stay_split_over_tensor():
    layout = make_device_layout("mesh", MeshConfig(data=1, fsdp=4, tensor=2))
    base = tiny.params()
    placed = device_put_tree(base, layout, SHARDING_RULES)
    with jax.set_mesh(layout.mesh):
        read = jax.jit(lambda tree: gathered(tree, jnp.bfloat16, SHARDING_RULES))(placed)
    for before, after, whole in zip(*map(jax.tree.leaves, (placed, read, base)), strict=True):
        split = [axis for axis in before.sharding.spec if axis == "tensor"]
        assert [axis for axis in after.sharding.spec if axis] == split
        np.testing.assert_array_equal(after, whole.astype(jnp.bfloat16))
    assert any("fsdp" in leaf.sharding.spec for leaf in jax.tree.leaves(placed))


def test_weights_of_a_loop_are_converted_before_they_are_gathered():
    layout = make_device_layout("mesh", MeshConfig(data=1, fsdp=8))
    placed = device_put_tree(tiny.params(), layout, SHARDING_RULES)
    with jax.set_mesh(layout.mesh):
        program = jax.jit(lambda tree: gathered(tree, jnp.float16, SHARDING_RULES)).lower(placed).compile().as_text()
    dtypes = set(re.findall(r"= (\w+)\[[\d,]*\]\S* all-gather\(", program))
    assert dtypes == {"f16"}
