"""The table of `medreport plan`: presets on slices and nodes, each on its best mesh, with bounds on its time.

What compilers say is kept in a file of JSON lines, one program a line, so that the command continues where it was
interrupted. A program that differs from a compiled one only by more copies of the model, or by fewer rows on a device,
is not compiled: its memory is at most that of the other, and the sums over the copies are added by arithmetic. Its row
names the topology whose program was compiled.
"""

import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

from common.config_options import choose_preset
from common.io.jsonl import read_jsonl, write_rows
from common.models.qwen2 import Qwen2Config
from common.training.flops import peak_flops
from common.training.parallel import MeshConfig
from launch.chips import CHIPS
from launch.meshes import bounds, exchange, ranked, sensible_meshes
from launch.slices import GPUS_OF_NODE, Slice, open_slice
from launch.steps import Step
from launch.table_text import mesh_text

# A program that was compiled for another chip with the same compiler stands for one where it takes no more than this
# share of the usable memory; programs for different chips differed in memory by up to 7%.
OTHER_CHIP = 0.9
FULL = 0.9  # of the usable memory: a mesh whose weights and optimizer state alone take more is not compiled
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
_NODES = ("1", "8", "2x8", "4x8", "8x8", "16x8", "32x8")
TOPOLOGIES = [
    f"{chip}:{shape}"
    for chip, shapes in {
        "v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES,
        "h100": _NODES, "h200": _NODES, "a100": _NODES, "rtx4090": ("1", "2", "4", "8"),
    }.items()
    for shape in shapes
]  # fmt: skip


class Planned(NamedTuple):
    """A preset of the table."""

    step_of: Callable[[str, Slice, MeshConfig, int | None], Step]
    tensors: tuple[int, ...] = (1,)  # sizes of the axis tensor
    splits: bool = True  # whether fsdp splits the model


class Program(NamedTuple):
    """What a compiler said, as a line of the file; bytes are those of one device."""

    preset: str
    topology: str
    mesh: dict[str, int]
    micro_batch: int
    accumulate: int
    fits: bool
    bytes_per_device: int  # of the largest program
    bytes: dict[str, int]  # of the same, by kind
    received: dict[str, int]  # of all programs of a step, by kind of collective
    between: dict[str, int]  # of these, from other nodes
    seconds: float  # to compile
    date: str

    @property
    def chip(self) -> str:
        """That of the topology."""
        return self.topology.partition(":")[0]


FIELDS = get_type_hints(Program)


def heads_of(language: Qwen2Config) -> tuple[int, ...]:
    """Sizes of the axis tensor that cut the key/value heads evenly."""
    return tuple(size for size in (1, 2, 4, 8) if language.num_key_value_heads % size == 0)


def named(given: str, known: Sequence[str], option: str) -> list[str]:
    """The names of a list with commas; `all` stands for all. Raises UserError for one that is not known."""
    if given == "all":
        return list(known)
    names = given.split(",")
    if option == "--preset":
        for name in names:
            choose_preset(dict.fromkeys(known), name)
    return names


def read_programs(path: Path) -> list[Program]:
    """The lines of the file, if there is one. Raises UserError for a line that is not of this command."""
    if not path.exists():
        return []
    kinds = {name: float | int if kind is float else get_origin(kind) or kind for name, kind in FIELDS.items()}
    return [Program(**{name: row[name] for name in FIELDS}) for row in read_jsonl(path, kinds)]


def rows_of(planned: dict[str, Planned], topologies: Sequence[str], path: Path) -> Iterator[dict[str, Any]]:
    """A row for each preset and topology; compiles what `path` does not have, and adds it there."""
    programs = read_programs(path)
    slices = {topology: open_slice(topology) for topology in topologies}  # what does not exist is said at once

    def compiled(preset: str, topology: str, step: Step) -> Program:
        made = compile_step(preset, topology, step)
        programs.append(made)
        write_rows(path, (one._asdict() for one in programs))
        shown = f"{preset} {topology} {mesh_text(made.mesh)}: {made.bytes_per_device / 1e9:.1f} GB"
        print(f"{shown}, compiled in {made.seconds:.0f} s", file=sys.stderr, flush=True)
        return made

    for preset, plan in planned.items():
        for topology in topologies:
            yield row_of(preset, plan, topology, slices[topology], programs, compiled)


def row_of(
    preset: str,
    plan: Planned,
    topology: str,
    on: Slice,
    programs: Sequence[Program],
    compiled: Callable[[str, str, Step], Program],
) -> dict[str, Any]:
    """The row of the best mesh that fits, or of the last that does not."""
    node = GPUS_OF_NODE if on.chip.gpu else len(on.devices)
    limit, peak = int(on.chip.usable * on.chip.memory), peak_flops(on.devices[0])
    meshes = sensible_meshes(len(on.devices), plan.tensors, node, plan.splits)
    steps = ranked([plan.step_of(preset, on, mesh, None) for mesh in meshes], peak, on.chip, node)
    refused: list[dict[str, int]] = []
    row: dict[str, Any] = {}
    for step in steps:
        if step.resident > FULL * limit:
            refused.append(dict(step.layout.mesh.shape))
            row = row or no_room(preset, topology, step, limit)
            continue
        for smaller in dict.fromkeys((step.batch.micro_batch, 1)):
            tried = (
                step
                if smaller == step.batch.micro_batch
                else plan.step_of(preset, on, MeshConfig(**step.layout.mesh.shape), smaller)
            )
            program = stands_for(preset, topology, tried, programs, limit) or compiled(preset, topology, tried)
            row = describe(tried, program, topology, on, node)
            if row["fits"]:
                return row | {"refused": refused}
        refused.append(dict(step.layout.mesh.shape))
    return row | {"refused": refused}


def stands_for(preset: str, topology: str, step: Step, programs: Sequence[Program], limit: int) -> Program | None:
    """A compiled program that says whether the step fits, and what it exchanges; the nearest of them."""
    chip, shape = topology.partition(":")[0], step.layout.mesh.shape
    micro_batch = step.batch.micro_batch
    found = []
    for one in programs:
        if one.preset != preset or any(one.mesh[axis] != shape[axis] for axis in ("fsdp", "tensor")):
            continue
        other = one.chip != chip
        if other and (CHIPS[one.chip].gpu is None) is not (CHIPS[chip].gpu is None):
            continue
        fits = one.fits and one.bytes_per_device <= (OTHER_CHIP if other else 1) * limit
        here = one.topology == topology and one.mesh == dict(shape) and one.micro_batch == micro_batch
        # What fits is known of fewer rows, too, and what does not fit of more.
        known = one.micro_batch >= micro_batch if fits else one.micro_batch <= micro_batch and not other
        if here or known:
            found.append((not here, other, not fits, abs(one.micro_batch - micro_batch), one))
    return min(found, key=lambda one: one[:-1])[-1] if found else None


def compile_step(preset: str, topology: str, step: Step) -> Program:
    """Compile all programs of a step."""
    found = step.compile()
    _, (largest, kinds) = max(found.items(), key=lambda one: one[1][0].total)
    received: dict[str, int] = {}
    between: dict[str, int] = {}
    for one, _ in found.values():
        for sums, own in ((received, one.received), (between, one.between)):
            for kind, size in (own or {}).items():
                sums[kind] = sums.get(kind, 0) + size
    return Program(
        preset,
        topology,
        dict(step.layout.mesh.shape),
        step.batch.micro_batch,
        step.batch.accumulate,
        all(one.fits for one, _ in found.values()),
        largest.total,
        kinds,
        received,
        between,
        round(sum(one.seconds for one, _ in found.values()), 1),
        datetime.date.today().isoformat(),
    )


def describe(step: Step, program: Program, topology: str, on: Slice, node: int) -> dict[str, Any]:
    """The row of a step whose program was compiled, here or elsewhere."""
    limit = int(on.chip.usable * on.chip.memory)
    received, between = scaled(step, program, node)
    found = bounds(step.stages, peak_flops(on.devices[0]), on.chip, sum(received.values()), sum(between.values()))
    batch = step.batch
    exact = (topology, dict(step.layout.mesh.shape), batch.micro_batch) == (
        program.topology, program.mesh, program.micro_batch,
    )  # fmt: skip
    costs = {
        kind: (size - between.get(kind, 0)) / on.chip.links + between.get(kind, 0) / (on.chip.network or on.chip.links)
        for kind, size in received.items()
    }
    return {
        "preset": program.preset,
        "topology": topology,
        "devices": len(on.devices),
        "mesh": dict(step.layout.mesh.shape),
        **batch_fields(step),
        "fits": program.fits and program.bytes_per_device <= limit,
        "bytes_per_device": program.bytes_per_device,
        "usable_bytes": limit,
        "bytes": program.bytes,
        "flops_per_device": sum(work.flops for work in step.stages.values()),
        "received_bytes": received,
        "between_nodes_bytes": between,
        **found,
        "costliest_collective": max(costs, key=lambda kind: costs[kind]) if costs else None,
        "compiled": "here" if exact else f"{program.topology}, {mesh_text(program.mesh)}, {program.micro_batch}",
        "date": program.date,
    }


def scaled(step: Step, program: Program, node: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a device receives, and those from other nodes, by kind: those of a program with other copies.

    What it exchanges for each micro-batch occurs as often as there are micro-batches. In place of its own sums over
    the axis data, by arithmetic, come those of the step.
    """
    times = step.batch.accumulate / program.accumulate
    received, between = ({kind: int(size * times) for kind, size in one.items()} for one in program[8:10])
    copies = program.mesh["data"]
    if copies == step.layout.mesh.shape["data"]:
        return received, between
    ours = exchange(step, node)["data"]
    shape = step.layout.mesh.shape
    once = step.batch.accumulate * 2 * step.exchanged.gradients / (shape["fsdp"] * shape["tensor"])
    theirs = once * (copies - 1) / copies
    received["all-reduce"] = max(received.get("all-reduce", 0) + round(ours.received - theirs), 0)
    if ours.between:
        between["all-reduce"] = between.get("all-reduce", 0) + round(ours.between)
    return received, between


def batch_fields(step: Step) -> dict[str, Any]:
    """The batch of a row."""
    fields = step.batch._asdict()
    return {"preset_batch": fields.pop("preset"), **fields}


def no_room(preset: str, topology: str, step: Step, limit: int) -> dict[str, Any]:
    """The row of a step that was not compiled, since what is always there leaves too little memory."""
    return {
        "preset": preset,
        "topology": topology,
        "devices": step.layout.mesh.size,
        "mesh": dict(step.layout.mesh.shape),
        **batch_fields(step),
        "fits": False,
        "bytes_per_device": step.resident,
        "usable_bytes": limit,
        "bytes": {"weights and optimizer": step.resident},
        "compiled": None,
    }
