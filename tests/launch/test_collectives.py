"""Bytes of collectives, against programs whose exchanges are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from launch.collectives import bytes_between_nodes, received_bytes

ROUNDS = 5


def compiled(function, *shapes):
    spec = PartitionSpec("x")
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    program = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(program).lower(*arguments).compile().as_text()


def in_loop(step):
    return lambda x: jax.lax.scan(lambda carry, _: (step(carry), None), x, None, length=ROUNDS)[0]


OF_DEVICE = 64 // 4 * 32 * 4  # bytes of a share of [64, 32] in float32 over the axis of 4 devices


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda x: jax.lax.psum(x, "x") / 4, {"all-reduce": 2 * OF_DEVICE * 3 // 4}),
        (lambda x: jax.lax.psum(x, ("x", "y")) / 8, {"all-reduce": 2 * OF_DEVICE * 7 // 8}),
        (lambda x: jax.lax.all_gather(x, "y", tiled=True)[:16] * 2, {"all-gather": OF_DEVICE}),
        (
            lambda x: jnp.tile(jax.lax.psum_scatter(x, "x", tiled=True), (4, 1)),
            {"reduce-scatter": OF_DEVICE // 4 * 3},
        ),
        (lambda x: jax.lax.ppermute(x, "x", [(n, (n + 1) % 4) for n in range(4)]), {"collective-permute": OF_DEVICE}),
        (lambda x: jnp.sin(x), {}),
    ],
)
def test_bytes_are_those_of_rings_in_each_round(step, expected):
    once = received_bytes(compiled(step, (64, 32)))
    assert once == expected
    assert received_bytes(compiled(in_loop(step), (64, 32))) == {kind: ROUNDS * size for kind, size in expected.items()}


def test_a_loop_without_a_known_end_counts_once():
    def until(x):
        return jax.lax.while_loop(lambda x: jnp.abs(x).max() > 1, lambda x: jax.lax.psum(x, "y") / 4, x)

    assert received_bytes(compiled(until, (64, 32))) == {"all-reduce": OF_DEVICE}


# As libtpu and the CUDA plugin print them.
LINES = {
    "  %a = bf16[1,512,256]{2,1,0:T(8,128)} all-gather(%b), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}": (
        "all-gather",
        512 * 256 * 2 * 7 // 8,
    ),
    "  %a = (bf16[64,256]{1,0}, bf16[512,256]{1,0}) all-gather-start(%b), channel_id=1, replica_groups=[1,8]<=[8]": (
        "all-gather",
        512 * 256 * 2 * 7 // 8,
    ),
    "  ROOT %a = (f32[16]{0:T(128)}, /*index=1*/f32[]{:T(128)}) all-reduce(%b, %c), replica_groups={{0,1,2,3},{4}}": (
        "all-reduce",
        2 * 17 * 4 * 3 // 4,
    ),
    "  %a = bf16[8,512]{1,0} reduce-scatter(%b), replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, to_apply=%add": (
        "reduce-scatter",
        8 * 512 * 2 * 3,
    ),
    "  %a = bf16[8,512]{1,0} all-gather(%b), replica_groups=mesh['axis_0'=8,'axis_1'=1,'axis_2'=32], "
    "device_ids=([32,8]T(1,0)) {'axis_0'}, dimensions={1}": ("all-gather", 8 * 512 * 2 * 7 // 8),
}


@pytest.mark.parametrize("line", LINES)
def test_all_ways_in_which_groups_are_written(line):
    kind, size = LINES[line]
    assert received_bytes(f"ENTRY %main (p: f32[]) -> f32[] {{\n{line}\n}}") == {kind: size}


NODES = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # Devices 0, 2, 4 and 6 exchange, two of each node: half of the sum comes in and goes out, for two.
        (lambda x: jax.lax.psum(x, "x") / 4, {"all-reduce": 2 * OF_DEVICE // 2 // 2}),
        (lambda x: jax.lax.psum(x, ("x", "y")) / 8, {"all-reduce": 2 * OF_DEVICE // 2 // 4}),
        (lambda x: jax.lax.all_gather(x, "y", tiled=True)[:16] * 2, {}),  # of pairs within a node
        (lambda x: jax.lax.all_gather(x, "x", tiled=True)[:16] * 2, {"all-gather": 4 * OF_DEVICE // 2 // 2}),
        (lambda x: jnp.tile(jax.lax.psum_scatter(x, "x", tiled=True), (4, 1)), {"reduce-scatter": OF_DEVICE // 2 // 2}),
        (lambda x: jax.lax.ppermute(x, "x", [(n, (n + 1) % 4) for n in range(4)]), {"collective-permute": OF_DEVICE}),
        (lambda x: jax.lax.ppermute(x, "x", [(0, 1), (1, 0)]), {}),
    ],
)
def test_devices_of_a_node_share_what_comes_from_others(step, expected):
    assert bytes_between_nodes(compiled(step, (64, 32)), NODES) == expected
    rounds = {kind: ROUNDS * size for kind, size in expected.items()}
    assert bytes_between_nodes(compiled(in_loop(step), (64, 32)), NODES) == rounds


# The same groups of 16 devices, as pairs that stand 8 apart, in every way in which XLA writes them.
PAIRS = [
    "replica_groups={{0,8},{1,9},{2,10},{3,11},{4,12},{5,13},{6,14},{7,15}}",
    "replica_groups=[8,2]<=[2,8]T(1,0)",
    "replica_groups=mesh['a'=2,'b'=8] {'a'}",
    "replica_groups=mesh['a'=1,'b'=8,'c'=2], device_ids=([2,8]T(1,0)) {'c'}",
    "replica_groups=mesh['a'=16] {'a':(1)2}",
]


@pytest.mark.parametrize("groups", PAIRS)
def test_groups_are_read_with_their_members(groups):
    program = f"ENTRY %main (p: f32[]) -> f32[] {{\n  %a = f32[100]{{0}} all-reduce(%b), {groups}, to_apply=%add\n}}"
    assert received_bytes(program) == {"all-reduce": 400}
    assert bytes_between_nodes(program, [device // 8 for device in range(16)]) == {"all-reduce": 400}
    assert bytes_between_nodes(program, [device % 8 for device in range(16)]) == {}
