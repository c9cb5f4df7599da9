"""Devices that are not there, arrays as shapes, and what the compiler says of a program for them.

libtpu compiles for slices of TPUs; JAX's CUDA plugin for nodes of GPUs, of which `launch.chips` describes each. No
GPU is asked anything then: what cuDNN takes besides is estimated here, and no product is timed to choose its kernel.
"""

import contextlib
import functools
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from common.devices import GPU_FLAGS, GPU_SETTINGS
from common.errors import UserError
from common.io.terminal import say
from common.models.attention_choice import Implementation, choose_implementation
from common.process.stopping import quiet_stderr
from common.training.parallel import DeviceLayout, Rules, shardings
from common.types import PyTree, TrainState
from launch.chips import CHIPS, GIB, Chip, Gpu, gpu_target
from launch.collectives import bytes_between_nodes, received_bytes
from launch.micro_batch_search import Compiled

GPUS_OF_NODE, MOST_NODES = 8, 32
# Bytes that cuDNN's backward pass takes for a token of the rows that a device processes at a time: 118 MB for a row of
# 4,096 at 28 heads of 128.
WORKSPACE_OF_TOKEN = 0.12e9 / 4096


class Slice(NamedTuple):
    """The chip of a topology, and its devices."""

    chip: Chip
    devices: Sequence[Any]


def open_slice(name: str) -> Slice:
    """Abstract devices by a name such as v5e:2x4, h100:8 or h100:4x8 (four nodes of eight).

    Raises UserError where there is no such slice, or no compiler for it.
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"\d+(x\d+){1,2}" if chip.gpu is None else r"(\d+x)?\d+", shape):
        tpus, gpus = (", ".join(own for own, one in CHIPS.items() if (one.gpu is None) is tpu) for tpu in (True, False))
        raise UserError(
            f"--topology {name}: expected CHIP:SHAPE with a chip of {tpus}, such as v5e:2x4, or GPU:COUNT or "
            f"GPU:NODESxCOUNT with one of {gpus}, such as h100:8 or h100:4x8"
        )
    if chip.gpu is not None:
        *nodes, count = map(int, shape.split("x"))
        return Slice(chip, gpu_devices(name, chip, chip.gpu, math.prod(nodes), count))
    # Three times faster to compile; where both efforts were compared, this one took 13% more memory. JAX 0.11 has none.
    with contextlib.suppress(AttributeError):
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    return Slice(chip, tpu_devices(name))


def gpu_devices(name: str, chip: Chip, gpu: Gpu, nodes: int, count: int) -> list[Any]:
    """Abstract devices of nodes of GPUs. Raises UserError where there are no such nodes, or no compiler for them."""
    if not 1 <= count <= GPUS_OF_NODE:
        raise UserError(f"--topology {name}: expected 1 to {GPUS_OF_NODE} GPUs a node; h100:4x8 is four nodes of eight")
    if not 1 <= nodes <= MOST_NODES:
        raise UserError(f"--topology {name}: expected 1 to {MOST_NODES} nodes")
    if nodes > 1 and chip.network is None:
        raise UserError(
            f"--topology {name}: no rate between nodes of this GPU is published; choose 1 to {GPUS_OF_NODE} GPUs"
        )
    if sys.version_info < (3, 12) or importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise UserError(
            "plan: the compiler for GPUs is not installed; it needs Python 3.12 or newer and "
            "pip install 'medreport-jax[plan-gpu]' (5 GB)"
        )
    try:
        with quiet_stderr():
            target = gpu_target(chip, gpu)
            found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x{nodes}x{count}")
    except (ValueError, NotImplementedError, RuntimeError) as error:  # JAX's own kind is the last
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"--topology {name}: JAX {jax.__version__} does not compile for this GPU ({reason}); pip install "
            "'medreport-jax[plan-gpu]'"
        ) from None
    return list(found.devices)


def tpu_devices(name: str) -> list[Any]:
    """Abstract devices of a TPU slice. Raises UserError where there is no such slice, or no libtpu to ask."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan: the TPU compiler (libtpu) is not installed; pip install 'medreport-jax[plan]'")
    # Without these it looks for the metadata server of a TPU host, for minutes.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing here holds a TPU that others could want
    try:
        # By default libtpu knows whole hosts only.
        alone = {"chips_per_host_bounds": [1, 1, 1]} if re.fullmatch(r"\w+:1(x1)+", name) else {}
        with quiet_stderr():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **alone).devices)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:  # the last two are JAX's
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--topology {name}: libtpu does not know this slice ({reason}); v5e:2x4 is one") from None


@functools.cache
def _say_compiling() -> None:
    say("compiling, which takes a minute or several", error=True)


def compile_abstract(step: Any, arguments: Sequence[PyTree], layout: DeviceLayout) -> tuple[Compiled, Any]:
    """What the compiler says of a jitted step for abstract arguments; and the program, None where it does not fit."""
    started, processor = time.perf_counter(), time.process_time()
    on_gpu = layout.mesh.devices.flat[0].platform == "gpu"
    options: Any = GPU_FLAGS if on_gpu else None
    precision = GPU_SETTINGS["JAX_DEFAULT_MATMUL_PRECISION"] if on_gpu else None
    _say_compiling()
    with layout.context(), jax.default_matmul_precision(precision):
        lowered = step.lower(*arguments)
        try:
            with quiet_stderr():
                program = lowered.compile(compiler_options=options)
                memory = program.memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            placed = device_bytes(arguments)
            total = max(bytes_refused(str(error)), placed)
            took = time.perf_counter() - started, time.process_time() - processor
            return Compiled(False, total, placed, total - placed, *took), None
    if memory is None:
        raise UserError("plan: this compiler does not report memory; install the version in uv.lock")
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    took = time.perf_counter() - started, time.process_time() - processor
    text, nodes = program.as_text() or "", nodes_of(layout)
    received, between = received_bytes(text), bytes_between_nodes(text, nodes)
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(True, total, *sizes, *took, received=received, between=between), program


def nodes_of(layout: DeviceLayout) -> list[int]:
    """The node of each device of a mesh; the chips of a TPU slice are as if in one, since links join them all."""
    devices = list(layout.mesh.devices.flat)
    return [device.process_index if device.platform == "gpu" else 0 for device in devices]


def attention_of(
    named: Implementation, length: int, head_dim: int, dtype: jnp.dtype, layout: DeviceLayout
) -> Implementation:
    """The implementation that runs on rows of this length on the devices of `layout`."""
    return choose_implementation(named, length, head_dim, dtype, layout.mesh.devices.flat[0].platform)


def with_workspace(found: Compiled, tokens: int) -> Compiled:
    """`found` and what cuDNN will take for the `tokens` that a device processes at a time, in temporary memory."""
    workspace = int(tokens * WORKSPACE_OF_TOKEN)
    return found._replace(
        total=found.total + workspace, temporary=found.temporary + workspace, workspace=found.workspace + workspace
    )


def bytes_by_kind(found: Compiled, state: TrainState, frozen: PyTree, caches: int = 0) -> dict[str, int]:
    """What the bytes of one device are for; their sum is `found.total`.

    `parameters` are trained and frozen ones as they are kept; `optimizer` is the rest of the state; `inputs` the batch;
    `caches`, by their shapes, those of generation; `activations` all other temporary memory, gradients and gathered
    parameters included; `workspace` what cuDNN takes; `outputs` results that do not take the place of an argument, and
    the program.
    """
    parameters = device_bytes((state.trainable, frozen))
    optimizer = device_bytes(state) - device_bytes(state.trainable)
    return {
        "parameters": parameters,
        "optimizer": optimizer,
        "inputs": found.arguments - parameters - optimizer,
        "activations": found.temporary - found.workspace - caches,
        "caches": caches,
        "workspace": found.workspace,
        "outputs": found.total - found.arguments - found.temporary,
    }


def bytes_refused(message: str) -> int:
    """The bytes that a program would have needed, from the compiler's message; 0 where it does not say.

    libtpu calls them temporaries, but they include arguments.
    """
    needed = re.search(r"\(([\d.]+)([KMG])\) exceeds available", message)
    return int(float(needed[1]) * {"K": 2**10, "M": 2**20, "G": GIB}[needed[2]]) if needed else 0


def device_bytes(tree: PyTree) -> int:
    """Bytes of one device's part of abstract arrays that have shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def elements(tree: PyTree) -> int:
    """Numbers in a tree of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def abstract(tree: PyTree, layout: DeviceLayout, rules: Rules) -> PyTree:
    """Shapes with the shardings that the arrays would have."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(tree, jax.ShapeDtypeStruct):
        return one(tree, NamedSharding(layout.mesh, PartitionSpec()))
    return jax.tree.map(one, tree, shardings(tree, layout, rules))
