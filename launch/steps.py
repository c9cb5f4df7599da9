"""A preset's step on a mesh before anything is compiled: its batch, the work of a device, and what devices exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.models.qwen2 import Qwen2Config
from common.training.flops import peak_flops
from common.training.optim import OptimConfig, make_optimizer
from common.training.parallel import DeviceLayout, Rules
from common.training.step import init_state
from common.types import PyTree
from launch.chips import time_floor
from launch.micro_batch_search import Compiled
from launch.slices import Slice, abstract, device_bytes

Programs = dict[str, tuple[Compiled, dict[str, int]]]  # what the compiler says of each, and its bytes by kind


class Work(NamedTuple):
    """What one device does for a step: FLOPs, bytes of memory that it reads, and bytes that it receives."""

    flops: float
    memory_bytes: float
    link_bytes: float


class Batch(NamedTuple):
    """How a step is cut up."""

    unit: str  # what is counted
    preset: int  # that many in the preset's batch
    size: int  # in this step
    micro_batch: int
    accumulate: int


class Exchanged(NamedTuple):
    """Bytes of the whole model, as if on one device, from which the exchange on any mesh is computed."""

    gathered: float  # weights, in the type in which fsdp gathers them
    gradients: float  # of what is trained, in the type of the computation, in which they are summed
    activations: float = 0.0  # summed over the axis tensor, of a device's micro-batch


class Step(NamedTuple):
    """A step on a mesh; `compile` takes minutes."""

    layout: DeviceLayout
    batch: Batch
    stages: dict[str, Work]
    exchanged: Exchanged
    resident: int  # bytes of weights and optimizer state on one device
    compile: Callable[[], Programs]


def floor_of(work: Work, on: Slice, found: Compiled | None = None) -> dict[str, Any]:
    """Bounds on the seconds of some work, and of what its compiled program brings from other nodes."""
    between = sum(((found and found.between) or {}).values())
    received = max(work.link_bytes, between)
    return time_floor(on.chip, peak_flops(on.devices[0]), work.flops, work.memory_bytes, received, between)


def micro_batch_of(config: Any, layout: DeviceLayout, given: int | None = None) -> int:
    """The preset's, or what a device gets of the preset's batch where that is less."""
    return given or min(config.micro_batch, max(config.batch_size // layout.row_shards, 1))


def resident_bytes(trainable: PyTree, frozen: PyTree, optim: OptimConfig, layout: DeviceLayout, rules: Rules) -> int:
    """Bytes of a device that are there during the whole run."""
    tx = make_optimizer(optim, 1000)
    state = jax.eval_shape(lambda tree: init_state(tree, tx), trainable)
    return device_bytes((abstract(state, layout, rules), abstract(frozen, layout, rules)))


def activation_bytes(sizes: Qwen2Config, tokens: int, remat: str) -> float:
    """Bytes that the axis tensor sums for `tokens`: after attention and after the hidden layer, in each pass."""
    width = jnp.dtype(sizes.dtype).itemsize
    sums = 2 * (3 if remat == "full" else 2)  # forward and backward, and forward again
    return float(sums * sizes.num_hidden_layers * tokens * sizes.hidden_size * width)
