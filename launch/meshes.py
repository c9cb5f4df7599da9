"""The meshes that make sense for a step on some devices, and by arithmetic what devices exchange on each.

Exchange by arithmetic ranks meshes before anything is compiled; the figures of a plan come from a compiled program.
"""

import math
from typing import Any, NamedTuple

from common.training.parallel import MeshConfig
from launch.chips import Chip
from launch.steps import Step, Work

PREFERRED_FSDP = 8  # of meshes that are equally fast: parameters split over a node of GPUs, or a host of TPUs
ALIKE = 1.02  # times the least time


class Collective(NamedTuple):
    """Bytes that a device receives in a step, and those of them that come from other nodes."""

    received: float
    between: float = 0.0


def sensible_meshes(devices: int, tensors: tuple[int, ...], node: int, splits: bool = True) -> list[MeshConfig]:
    """All ways to write `devices` as data x fsdp x tensor in powers of two.

    `tensors` are the sizes of the axis tensor that the model's heads allow; it stays within a node of `node` devices.
    Where the model is never split (`splits`), there is data alone.
    """
    if not splits:
        return [MeshConfig(devices, 1, 1)]
    return [
        MeshConfig(devices // (fsdp * tensor), fsdp, tensor)
        for tensor in tensors
        for fsdp in (2**power for power in range(devices.bit_length()))
        if tensor <= node and devices % (fsdp * tensor) == 0
    ]


def exchange(step: Step, node: int) -> dict[str, Collective]:
    """What a device receives, by axis of the mesh: gathered weights and gradients over fsdp, summed ones over data.

    Weights are gathered in the forward and in the backward pass, gradients exchanged, for each micro-batch.
    """
    shape = step.layout.mesh.shape
    data, fsdp, tensor = (shape[name] for name in ("data", "fsdp", "tensor"))
    whole, times = step.exchanged, step.batch.accumulate
    return {
        "fsdp": _along(times * (2 * whole.gathered + whole.gradients) / tensor, fsdp, tensor, node),
        "data": _along(times * 2 * whole.gradients / (fsdp * tensor), data, fsdp * tensor, node),
        "tensor": _along(times * 2 * whole.activations, tensor, 1, node),
    }


def _along(size: float, devices: int, stride: int, node: int) -> Collective:
    """Of `size` bytes, what a ring of `devices` brings to each; they stand `stride` apart, `node` to a node."""
    members = min(devices, max(node // stride, 1))
    ways = devices // members
    return Collective(size * (devices - 1) / devices, size * (ways - 1) / ways / members)


def bounds(stages: dict[str, Work], peak: float | None, chip: Chip, received: float, between: float) -> dict[str, Any]:
    """Seconds of a step at the rates of data sheets: if all overlaps within a stage, and if nothing does.

    Stages follow each other; the exchange of all of them counts as if it could overlap with any.
    """
    compute = {name: work.flops / peak if peak else 0.0 for name, work in stages.items()}
    memory = {name: work.memory_bytes / chip.bandwidth for name, work in stages.items()}
    seconds = {
        "compute": sum(compute.values()),
        "memory": sum(memory.values()),
        "links": (received - between) / chip.links,
        "network": between / chip.network if between and chip.network else 0.0,
    }
    own = sum(max(compute[name], memory[name]) for name in stages)
    from_compute = sum(compute[name] for name in stages if compute[name] >= memory[name])
    least = max(own, seconds["links"], seconds["network"])
    if least == own:
        bound = "compute" if from_compute >= own / 2 else "memory"
    else:
        bound = max(("links", "network"), key=lambda name: seconds[name])
    return {
        "seconds": seconds,
        "seconds_at_least": least,
        "seconds_without_overlap": sum(seconds.values()),
        "bound_by": bound,
    }


def ranked(steps: list[Step], peak: float | None, chip: Chip, node: int) -> list[Step]:
    """Best first: the least time of a row, midway between its two bounds.

    Of meshes that are alike in time comes first the one that splits no product and whose axis fsdp is nearest to
    `PREFERRED_FSDP`.
    """

    def cost(step: Step) -> float:
        parts = exchange(step, node).values()
        received, between = sum(one.received for one in parts), sum(one.between for one in parts)
        found = bounds(step.stages, peak, chip, received, between)
        return (found["seconds_at_least"] + found["seconds_without_overlap"]) / 2 / step.batch.size

    def unusual(step: Step) -> tuple[int, float]:
        shape = step.layout.mesh.shape
        return shape["tensor"], abs(math.log2(shape["fsdp"] / PREFERRED_FSDP))

    left = sorted(((cost(step), step) for step in steps), key=lambda one: one[0])
    order = []
    while left:
        near = [one for one in left if one[0] <= ALIKE * left[0][0]]
        best = min(near, key=lambda one: unusual(one[1]))
        order.append(best[1])
        left = [one for one in left if one is not best]
    return order
