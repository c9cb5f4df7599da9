"""The table of plans: what is compiled and what stands for it, what the file keeps, and how rows are shown."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from common.errors import UserError
from common.training.parallel import MeshConfig, batch_sharding, make_device_layout
from launch import plan, plan_deer, plan_deer_sft, plan_table, plan_unicross
from launch.chips import CHIPS
from launch.plan_table import Planned, Program, read_programs, row_of, rows_of, scaled
from launch.slices import Slice, compile_abstract
from launch.steps import Batch, Exchanged, Step, Work
from launch.table_text import mesh_text, print_table
from retsta_jax.config import PRESETS as RETSTA

GRADIENTS = 64 * 32 * 4


def devices_of(topology):
    chip, _, shape = topology.partition(":")
    return Slice(CHIPS[chip], jax.devices()[: int(shape.replace("x", "") or 1) if "x" not in shape else 8])


def toy(resident=0):
    """A step of 16 rows: its work is split over the rows, its state over fsdp."""

    def step_of(preset, on, mesh, micro_batch):
        layout = make_device_layout("mesh", mesh, on.devices)
        micro = micro_batch or min(2, max(16 // layout.row_shards, 1))
        accumulate = max(16 // (layout.row_shards * micro), 1)
        batch = Batch("rows", 16, layout.row_shards * micro * accumulate, micro, accumulate)
        stages = {"update": Work(1e12 * 16 / layout.mesh.size, 1e9, 0.0)}
        exchanged = Exchanged(1e12, GRADIENTS)
        return Step(layout, batch, stages, exchanged, resident // layout.mesh.shape["fsdp"], dict)

    return Planned(step_of)


class Compiler:
    """Stands for the compiler: programs of `size` bytes for each row and device, divided over fsdp."""

    def __init__(self, size):
        self.size, self.seen = size, []

    def __call__(self, preset, topology, step):
        mesh = dict(step.layout.mesh.shape)
        self.seen.append((topology, mesh_text(mesh), step.batch.micro_batch))
        total = self.size * step.batch.micro_batch // mesh["fsdp"]
        numbers = step.batch.micro_batch, step.batch.accumulate, True, total
        received = {} if step.layout.mesh.size == 1 else {"all-reduce": 1000}
        return Program(preset, topology, mesh, *numbers, {"activations": total}, received, {}, 1.0, "2026-11-30")


@pytest.fixture
def virtual(monkeypatch):
    monkeypatch.setattr(plan_table, "open_slice", devices_of)
    monkeypatch.setattr(plan_table, "peak_flops", lambda device: 100e12)

    def of(size):
        compiler = Compiler(size)
        monkeypatch.setattr(plan_table, "compile_step", compiler)
        return compiler

    return of


def test_a_program_stands_for_more_copies_and_fewer_rows(virtual, tmp_path):
    compiler, path = virtual(10**9), tmp_path / "programs.jsonl"
    alone, copied, other = rows_of({"toy": toy()}, ["v5e:1", "v5e:8", "v6e:8"], path)
    assert compiler.seen == [("v5e:1", "1 x 1 x 1", 2)]
    assert alone["compiled"] == "here"
    assert copied["compiled"] == other["compiled"] == "v5e:1, 1 x 1 x 1, 2"
    assert copied["received_bytes"] == {"all-reduce": 2 * GRADIENTS * 7 // 8}  # added by arithmetic
    assert alone["seconds_at_least"] == pytest.approx(8 * copied["seconds_at_least"])
    assert [row["size"] for row in (alone, copied)] == [16, 16]


def test_the_command_continues_from_its_file(virtual, tmp_path):
    path = tmp_path / "programs.jsonl"
    virtual(10**9)
    first = list(rows_of({"toy": toy()}, ["v5e:1", "h100:8"], path))
    again = virtual(10**9)
    assert list(rows_of({"toy": toy()}, ["v5e:1", "h100:8"], path)) == first
    assert again.seen == []
    assert [one.topology for one in read_programs(path)] == ["v5e:1", "h100:8"]


def test_what_does_not_fit_takes_fewer_rows_then_a_mesh_that_splits_more(virtual, tmp_path):
    """A v5e has 16.8 GB; 10 for a row fit with one row, 20 with none until fsdp halves them."""
    compiler = virtual(10 * 10**9)
    (row,) = rows_of({"toy": toy()}, ["v5e:1"], tmp_path / "rows.jsonl")
    assert [micro for *_, micro in compiler.seen] == [2, 1]
    assert (row["fits"], row["micro_batch"], row["accumulate"], row["size"]) == (True, 1, 16, 16)
    compiler = virtual(20 * 10**9)
    (row,) = rows_of({"toy": toy()}, ["v5e:8"], tmp_path / "meshes.jsonl")
    assert [mesh for _, mesh, _ in compiler.seen] == ["8 x 1 x 1", "8 x 1 x 1", "4 x 2 x 1", "4 x 2 x 1"]
    assert (row["fits"], row["mesh"]["fsdp"], row["micro_batch"]) == (True, 2, 1)
    assert row["refused"] == [{"data": 8, "fsdp": 1, "tensor": 1}]


def test_a_mesh_whose_state_takes_all_memory_is_not_compiled(virtual):
    compiler = virtual(10**9)
    row = row_of("toy", toy(16 * 10**9), "v5e:1", devices_of("v5e:1"), [], compiler)
    assert compiler.seen == []
    assert (row["fits"], row["bytes_per_device"], row["compiled"]) == (False, 16 * 10**9, None)
    assert row["refused"] == [{"data": 1, "fsdp": 1, "tensor": 1}]


def test_another_chip_must_leave_a_margin(virtual):
    compiler = virtual(80 * 10**8)  # 16 GB for two rows: fits a v5e, but not with a margin
    program = Program("toy", "v6e:1", {"data": 1, "fsdp": 1, "tensor": 1}, 2, 8, True, 16 * 10**9, {}, {}, {}, 1.0, "")
    row = row_of("toy", toy(), "v5e:1", devices_of("v5e:1"), [program], compiler)
    assert compiler.seen == [("v5e:1", "1 x 1 x 1", 2)]
    assert row["compiled"] == "here"


def test_a_scaled_program_exchanges_what_a_compiled_one_does():
    """The gradient of replicated weights for rows over 2 and over 8 copies, both compiled."""

    def step(copies):
        layout = make_device_layout("mesh", MeshConfig(copies, 1, 1), jax.devices()[:copies])
        weights = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(layout.mesh, PartitionSpec()))
        rows = jax.ShapeDtypeStruct((copies * 4, 64), jnp.float32, sharding=batch_sharding(layout))

        def gradient(weights, rows):
            return jax.grad(lambda w: jnp.sin(rows @ w).sum())(weights)

        found, _ = compile_abstract(jax.jit(gradient), (weights, rows), layout)
        assert found.received == {"all-reduce": 2 * GRADIENTS * (copies - 1) // copies}
        made = Step(layout, Batch("rows", 8, copies * 4, 4, 1), {}, Exchanged(0.0, GRADIENTS), 0, dict)
        mesh = dict(layout.mesh.shape)
        return made, Program("p", "v5e", mesh, 4, 1, True, 0, {}, found.received, found.between or {}, 1.0, "")

    (_, two), (large, eight) = step(2), step(8)
    received, between = scaled(large, two, node=8)
    assert (received, between) == (eight.received, {})
    received, between = scaled(large, two, node=4)
    assert between == {"all-reduce": 2 * GRADIENTS // 2 // 4}


def test_rows_are_shown_as_markdown_and_as_json(virtual, tmp_path, capsys):
    virtual(10**9)
    rows = list(rows_of({"toy": toy()}, ["v5e:1", "v5e:8"], tmp_path / "programs.jsonl"))
    print_table(iter(rows), "markdown")
    head, line, *shown = capsys.readouterr().out.splitlines()
    assert head.startswith("| preset | topology | mesh |")
    assert {text.count("|") for text in (head, line, *shown)} == {head.count("|")}
    assert "`v5e:8` | 8 x 1 x 1 | 16 (2) | yes | at most 2.0 of 16.8" in shown[1]
    print_table(iter(rows), "jsonl")
    assert [json.loads(text)["topology"] for text in capsys.readouterr().out.splitlines()] == ["v5e:1", "v5e:8"]


def test_a_file_that_is_of_something_else_is_one_clear_line(tmp_path):
    path = tmp_path / "programs.jsonl"
    path.write_text('{"preset": "toy"}\n')
    with pytest.raises(UserError, match=r"programs\.jsonl, line 1: key 'topology' is missing"):
        read_programs(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "retsta7b", "--topology", "v5e:2x4"], "--preset retsta7b: unknown"),
        (["--preset", "openi", "--topology", "v5e:2x4,v7:2x2"], "--topology v7:2x2: expected CHIP:SHAPE"),
        (["--preset", "openi", "--topology", "v5e:2x4", "--micro-batch", "2"], "leave out micro_batch"),
    ],
)
def test_a_table_of_what_does_not_exist_is_one_clear_line(monkeypatch, tmp_path, options, message):
    path = tmp_path / "programs.jsonl"
    monkeypatch.setattr(plan_table, "compile_step", lambda *_: pytest.fail("nothing is to be compiled"))
    with pytest.raises(UserError, match=message):
        plan.main([*options, "--programs", str(path)])
    assert not path.exists()


def test_a_format_without_a_table_is_one_clear_line():
    with pytest.raises(UserError, match="--format: it is for a table"):
        plan.main(["--preset", "openi", "--topology", "v5e:2x4", "--format", "jsonl"])


def test_the_table_has_every_preset_that_is_not_for_a_cpu():
    planned = {*RETSTA, *plan_deer.PLANNED, *plan_deer_sft.PLANNED, *plan_unicross.PLANNED}
    same = {"retsta-7b-zero", "deer-chexpert-plus", "deer-sft-chexpert-plus"}  # as the presets beside them
    assert planned - same - {"demo", "small"} == plan.TABLE.keys()
    assert plan.TABLE["retsta-7b"].tensors == (1, 2, 4)
