"""Bytes of collectives, against programs whose exchanges are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from launch.collectives import received_bytes

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
}


@pytest.mark.parametrize("line", LINES)
def test_all_ways_in_which_groups_are_written(line):
    kind, size = LINES[line]
    assert received_bytes(f"ENTRY %main (p: f32[]) -> f32[] {{\n{line}\n}}") == {kind: size}
