"""Three ways to run one step: `jit` on one device, `pmap` over all devices, `mesh` with data, fsdp and tensor axes.

`make_device_layout` decides how; `device_put_tree` and `place_batch` put trees where the step expects them, once;
`compile_step` turns a pure step into the running one. The state looks the same in all three: plain global arrays,
replicated under pmap.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from common.bounds import Within
from common.config import Incidental
from common.errors import UserError
from common.models.layers import BATCH_AXES, constrain
from common.models.quantized import STEP
from common.options import Needs
from common.training.step import TrainStep
from common.types import PyTree

PMAP_AXIS = "devices"
Rules = Sequence[tuple[str, tuple[str | None, ...]]]  # (pattern searched in a leaf's path, its PartitionSpec)


# auto: jit on one device, a mesh on several
Mode = Incidental[Literal["auto", "jit", "pmap", "mesh"]]
Axis = Incidental[Annotated[int, Within(-1, 1 << 20)]]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; at most one may be -1, which stands for the devices that the others leave."""

    data: Axis = -1  # mesh axis: rows split, parameters repeated
    fsdp: Axis = 1  # mesh axis: rows split, and parameters split too and gathered layer by layer
    tensor: Axis = 1  # mesh axis: heads, hidden units and vocabulary split


MESH_NEEDS = Needs("mesh", "parallel", ("auto", "mesh"))


@dataclasses.dataclass(frozen=True)
class DeviceLayout:
    """A decided way to run: `mode`, the mesh of its devices, and how many parts the rows of a batch are cut into."""

    mode: str
    mesh: Mesh
    row_shards: int

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The mesh in force, for `constrain` and splash attention; nothing under jit and pmap."""
        return jax.set_mesh(self.mesh) if self.mode == "mesh" else contextlib.nullcontext()


def make_device_layout(
    mode: Mode = "auto", config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> DeviceLayout:
    """Decide how to run on these devices (all by default). Raises UserError where the mesh does not fit them."""
    devices = list(jax.devices() if devices is None else devices)
    config = config or MeshConfig()
    if mode == "auto":
        mode = "mesh" if len(devices) > 1 else "jit"
    if mode == "jit":
        if (count := len({device.process_index for device in devices})) > 1:
            raise UserError(f"parallel: jit runs on one device, but there are {count} hosts; choose auto, pmap or mesh")
        return DeviceLayout(mode, _mesh(devices[:1], (PMAP_AXIS,), (1,)), 1)
    if mode == "pmap":
        return DeviceLayout(mode, _mesh(devices, (PMAP_AXIS,), (len(devices),)), len(devices))
    sizes = [config.data, config.fsdp, config.tensor]
    wild = [axis for axis, size in enumerate(sizes) if size == -1]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    shown = f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
    if len(wild) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh: {shown} is not a mesh; give positive sizes and at most one -1 (the rest)")
    if len(devices) % fixed or (not wild and fixed != len(devices)):
        raise UserError(
            f"mesh: {shown} needs a multiple of {fixed} devices, but there are {len(devices)}; "
            "choose sizes whose product is the number of devices, or -1 for one of them"
        )
    if wild:
        sizes[wild[0]] = len(devices) // fixed
    return DeviceLayout(mode, _mesh(devices, (*BATCH_AXES, "tensor"), tuple(sizes)), sizes[0] * sizes[1])


def generation_layout(
    config: MeshConfig | None = None, mode: Mode = "auto", devices: Sequence[jax.Device] | None = None
) -> DeviceLayout:
    """How reports are written: with whole weights on each device of this process, apart from those of others.

    A mesh that splits weights is taken over `devices`, by default all of them, as in training.
    """
    config = config or MeshConfig()
    if mode == "mesh" or (mode == "auto" and (config.fsdp, config.tensor) != (1, 1)):
        return make_device_layout(mode, config, devices)
    devices = jax.local_devices()
    return make_device_layout("jit" if mode == "jit" or len(devices) == 1 else "pmap", devices=devices)


def _mesh(devices: Sequence[jax.Device], names: tuple[str, ...], sizes: tuple[int, ...]) -> Mesh:
    types = (AxisType.Auto,) * len(names)
    try:
        return jax.make_mesh(sizes, names, axis_types=types, devices=devices)
    except NotImplementedError:  # make_mesh cuts an axis of the slice in two only for v5e
        split = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(split, names, axis_types=types)


def shardings(tree: PyTree, layout: DeviceLayout, rules: Rules) -> PyTree:
    """A sharding for every leaf (array or shape): the first rule whose pattern is found in the leaf's path.

    An axis of a leaf that the mesh axis does not divide stays whole. Outside `mesh` everything is replicated.
    """

    def one(path, leaf) -> NamedSharding:
        if layout.mode != "mesh":
            return NamedSharding(layout.mesh, PartitionSpec())
        pairs = zip(_spec(path, rules), leaf.shape, strict=False)
        fits = [axis if axis and size % layout.mesh.shape[axis] == 0 else None for axis, size in pairs]
        return NamedSharding(layout.mesh, PartitionSpec(*fits))

    return jax.tree_util.tree_map_with_path(one, tree)


def device_put_tree(tree: PyTree, layout: DeviceLayout, rules: Rules = ()) -> PyTree:
    """Put a tree, the same in every process, on the devices, once, in the shardings of `rules`."""
    where = shardings(tree, layout, rules)
    return jax.device_put(tree, where) if jax.process_count() == 1 else jax.tree.map(_place_global, tree, where)


def _place_global(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Each process puts its part on its devices; `device_put` would ask it to reach those of others."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _place_global(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])


def gathered(tree: PyTree, dtype: DTypeLike, rules: Rules) -> PyTree:
    """Inside a program: weights in `dtype`, split over the axis "tensor" alone.

    For a loop that reads them at every turn: what fsdp splits is gathered and converted once, before it.
    """
    mesh = jax.sharding.get_abstract_mesh().shape

    def one(path, leaf: Array) -> Array:
        pairs = zip(_spec(path, rules), leaf.shape, strict=False)
        split = [axis if axis and size % mesh.get(axis, 1) == 0 else None for axis, size in pairs]
        # Without the first constraint XLA gathers, and holds, what is converted afterwards: twice the bytes.
        wide = jnp.issubdtype(leaf.dtype, jnp.floating) and path[-1].key != STEP
        own = constrain(leaf.astype(dtype) if wide else leaf, *split)
        return constrain(own, *("tensor" if axis == "tensor" else None for axis in split))

    return jax.tree_util.tree_map_with_path(one, tree)


def _spec(path: Any, rules: Rules) -> tuple[str | None, ...]:
    """That of the first rule whose pattern is found in the path of a leaf."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((spec for pattern, spec in rules if re.search(pattern, name)), ())


def batch_sharding(layout: DeviceLayout) -> NamedSharding:
    """How the rows of a batch are split."""
    return NamedSharding(layout.mesh, PartitionSpec(BATCH_AXES if layout.mode == "mesh" else PMAP_AXIS))


def processes(layout: DeviceLayout) -> int:
    """The number of processes whose devices a layout has."""
    return len({device.process_index for device in layout.mesh.devices.flat})


def all_row_shards(layout: DeviceLayout) -> int:
    """Into how many parts rows are cut where each process has such a layout."""
    return layout.row_shards * jax.process_count() // processes(layout)


def place_batch(batch: PyTree, layout: DeviceLayout) -> PyTree:
    """This process's rows of a batch, numpy [rows, ...], as global arrays split by rows.

    Under pmap leaves become [devices, rows / devices, ...].
    """
    sharding = batch_sharding(layout)
    parts = layout.row_shards // processes(layout)

    def one(leaf: np.ndarray) -> jax.Array:
        if layout.mode == "pmap":
            leaf = leaf.reshape(parts, -1, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(one, batch)


def compile_step(make_step: Callable[[str | None], TrainStep], layout: DeviceLayout) -> TrainStep:
    """The step as it runs: `make_step` is given the axis name to reduce over (pmap) or None. The state is donated."""
    if layout.mode == "pmap":
        step = jax.pmap(
            make_step(PMAP_AXIS),
            axis_name=PMAP_AXIS,
            in_axes=(None, None, 0, None),
            out_axes=(None, None),
            devices=list(layout.mesh.devices.flat),
            donate_argnums=0,
        )
        return step if jax.process_count() == 1 else _with_global_state(step, layout)
    compiled: dict[tuple, TrainStep] = {}

    def run(state: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array):
        # The new state is pinned to the shardings of the old one, so that no step ever moves it.
        if not compiled:
            kept = jax.tree.map(lambda leaf: leaf.sharding, state)
            compiled[()] = jax.jit(make_step(None), donate_argnums=0, out_shardings=(kept, None))
        with layout.context():
            return compiled[()](state, frozen, batch, rng)

    return run


def _with_global_state(step: TrainStep, layout: DeviceLayout) -> TrainStep:
    """Of several hosts, pmap gives each its own copies; checkpoints need arrays that belong to all of them."""
    everywhere = NamedSharding(layout.mesh, PartitionSpec())

    def one(leaf: jax.Array) -> jax.Array:
        copies = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, copies)

    def run(state: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array):
        state, metrics = step(state, frozen, batch, rng)
        return jax.tree.map(one, state), metrics

    return run


def compile_evaluation(sums: Callable[..., PyTree], layout: DeviceLayout) -> Callable[..., PyTree]:
    """Run `sums(trainable, frozen, batch, rng)`, a tree of sums over rows, as `compile_step` runs a step."""
    if layout.mode == "pmap":
        return jax.pmap(
            lambda *args: jax.lax.psum(sums(*args), PMAP_AXIS),
            axis_name=PMAP_AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            devices=list(layout.mesh.devices.flat),
        )
    compiled = jax.jit(sums)

    def run(*args: PyTree) -> PyTree:
        with layout.context():
            return compiled(*args)

    return run


def compile_rows(rows: Callable[..., PyTree], layout: DeviceLayout) -> Callable[..., PyTree]:
    """Run `rows(trainable, frozen, batch, step)`, whose leaves are [rows, ...], on batches of `place_batch`.

    What comes out is split as the batch is. `step` is the same for all.
    """
    if layout.mode == "pmap":
        return jax.pmap(
            rows, axis_name=PMAP_AXIS, in_axes=(None, None, 0, None), devices=list(layout.mesh.devices.flat)
        )
    compiled = jax.jit(rows, out_shardings=batch_sharding(layout) if layout.mode == "mesh" else None)

    def run(*args: PyTree) -> PyTree:
        with layout.context():
            return compiled(*args)

    return run


def fetch_rows(tree: PyTree, layout: DeviceLayout) -> PyTree:
    """This process's rows as numpy [rows, ...]: the inverse of `place_batch`."""

    def one(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            rows = np.asarray(leaf)
        else:
            parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
            rows = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
        return rows.reshape(-1, *rows.shape[2:]) if layout.mode == "pmap" else rows

    return jax.tree.map(one, tree)


def check_rows(rows: int, accumulate: int, layout: DeviceLayout) -> None:
    """Raise UserError where the rows of a step cannot be cut evenly over devices and micro-batches."""
    parts = layout.row_shards * accumulate
    if rows % parts:
        raise UserError(
            f"batch_size: {rows} rows per step do not split over {layout.row_shards} devices x {accumulate} "
            f"accumulation steps; choose a multiple of {parts}"
        )


def check_heads(key_value_heads: int, layout: DeviceLayout) -> None:
    """Raise UserError where the axis "tensor" cannot split a decoder's heads: each part needs keys of its own."""
    parts = layout.mesh.shape.get("tensor", 1)
    if key_value_heads % parts:
        fit = [str(size) for size in range(1, key_value_heads + 1) if key_value_heads % size == 0]
        raise UserError(
            f"mesh.tensor: {parts} parts do not split the model's {key_value_heads} key/value heads; "
            f"choose {', '.join(fit)}, and mesh.fsdp for the other devices"
        )
