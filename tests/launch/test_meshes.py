"""Meshes are counted, their exchange and bounds computed by hand, and the best comes first."""

import dataclasses

import jax
import pytest

from common.training.parallel import MeshConfig, make_device_layout
from launch import plan
from launch.chips import CHIPS
from launch.meshes import bounds, exchange, ranked, sensible_meshes
from launch.slices import Slice
from launch.steps import Batch, Exchanged, Step, Work

PEAK = 100e12


def step(mesh, work=(0.0, 0.0), exchanged=(0.0, 0.0), batch=(16, 16, 1, 1)):
    layout = make_device_layout("mesh", MeshConfig(*mesh), jax.devices())
    return Step(layout, Batch("rows", *batch), {"update": Work(*work, 0.0)}, Exchanged(*exchanged), 0, dict)


def shapes(meshes):
    return [dataclasses.astuple(mesh) for mesh in meshes]


def test_sensible_meshes_are_all_products_in_powers_of_two():
    assert shapes(sensible_meshes(4, (1, 2), 8)) == [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]
    assert shapes(sensible_meshes(16, (1,), 8, splits=False)) == [(16, 1, 1)]
    assert {mesh.tensor for mesh in sensible_meshes(16, (1, 2, 4), 2)} == {1, 2}


def test_exchange_is_that_of_rings_over_each_axis():
    """Two devices a node. Over fsdp 2 neighbours: half of gathered weights, twice, and of gradients."""
    parts = exchange(step((2, 2, 2), exchanged=(800.0, 80.0), batch=(16, 16, 2, 3)), node=2)
    assert parts["fsdp"].received == 3 * (2 * 800 + 80) / 2 / 2
    assert parts["fsdp"].between == parts["fsdp"].received  # neighbours over fsdp stand 2 apart
    assert parts["data"].received == 3 * 2 * 80 / (2 * 2) / 2
    assert parts["tensor"].between == 0
    within = exchange(step((2, 4, 1), exchanged=(800.0, 80.0)), node=4)
    assert within["fsdp"].between == 0
    assert within["data"].between == within["data"].received == 2 * 80 / 4 / 2
    across = exchange(step((1, 8, 1), exchanged=(800.0, 80.0)), node=4)["fsdp"]
    assert across.received == (2 * 800 + 80) * 7 / 8
    assert across.between == (2 * 800 + 80) / 2 / 4  # half of it, shared by 4


def test_bounds_add_stages_and_take_the_longest_way():
    chip = CHIPS["h100"]
    stages = {"decode": Work(PEAK, 3 * chip.bandwidth, 0.0), "update": Work(2 * PEAK, chip.bandwidth, 0.0)}
    found = bounds(stages, PEAK, chip, received=450e9 + 300e9, between=300e9)
    assert found["seconds"] == pytest.approx({"compute": 3, "memory": 4, "links": 1, "network": 6})
    assert found["seconds_at_least"] == pytest.approx(6)
    assert found["bound_by"] == "network"
    assert found["seconds_without_overlap"] == pytest.approx(14)
    alone = bounds(stages, PEAK, chip, 0, 0)
    assert (alone["seconds_at_least"], alone["bound_by"]) == (pytest.approx(5), "memory")


def test_a_mesh_that_exchanges_less_comes_first():
    meshes = [step((1, 8, 1), exchanged=(1e12, 1e6)), step((8, 1, 1), exchanged=(1e12, 1e6))]
    assert ranked(meshes, PEAK, CHIPS["v6e"], 8)[0] is meshes[1]


def test_what_counts_is_the_time_of_a_row():
    larger, kept = step((8, 1, 1), (9e12, 0.0), batch=(4, 8, 1, 1)), step((4, 1, 2), (5e12, 0.0), batch=(4, 4, 1, 1))
    assert ranked([kept, larger], PEAK, CHIPS["v6e"], 8)[0] is larger


def test_of_meshes_alike_the_one_that_splits_over_a_host_comes_first():
    meshes = [step(shape, (PEAK, 0.0)) for shape in ((8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 4, 1), (1, 4, 2))]
    assert ranked(meshes, PEAK, CHIPS["v6e"], 8)[0] is meshes[2]
    assert ranked(meshes, PEAK, CHIPS["v6e"], 8)[-1] is meshes[4]


def test_more_devices_take_no_longer():
    found = []
    for devices in (1, 2, 4, 8):
        one = plan.step_of("openi", Slice(CHIPS["v5e"], jax.devices()[:devices]), MeshConfig(devices, 1, 1))
        assert one.batch.size == 32
        parts = exchange(one, devices)
        sums = (sum(getattr(part, name) for part in parts.values()) for name in ("received", "between"))
        found.append(bounds(one.stages, PEAK, CHIPS["v5e"], *sums))
    for name in ("seconds_at_least", "seconds_without_overlap"):
        assert sorted((one[name] for one in found), reverse=True) == [one[name] for one in found]
    compute = [one["seconds"]["compute"] for one in found]
    assert compute == pytest.approx([compute[0] / devices for devices in (1, 2, 4, 8)])
