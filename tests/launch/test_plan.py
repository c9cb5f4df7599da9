"""The plan compiles a tiny step for devices that are not there, and says what is wrong where it cannot."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from common.errors import UserError
from common.models.qwen2 import Qwen2Config
from common.training.flops import PEAK_FLOPS, adapter_parameters, matrix_parameters, peak_flops, train_flops
from common.training.parallel import MeshConfig, make_device_layout
from launch import chips, plan, slices
from launch.micro_batch_search import OUT_OF_TIME, Compiled, search_micro_batch, search_outcome
from retsta_jax.config import PRESETS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install libtpu"
)

needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None or sys.version_info < (3, 12),
    reason="the compiler for GPUs is not installed: pip install 'medreport-jax[plan-gpu]'",
)

SIZES = Qwen2Config(
    vocab_size=512, hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=128,
)  # fmt: skip
CONFIG = dataclasses.replace(PRESETS["retsta-7b"], max_length=256, micro_batch=1, batch_size=16)


@pytest.fixture(scope="module")
def tpus():
    return slices.open_slice("v5e:2x4")


@needs_libtpu
def test_a_tiny_step_compiles_for_a_slice(tpus):
    found = plan.make_plan(CONFIG, SIZES, "v5e:2x4", tpus, None)
    assert found["attention"] == "splash"
    check_tiny(found)


@needs_cuda
def test_a_tiny_step_compiles_for_gpus():
    found = plan.make_plan(CONFIG, SIZES, "h100:8", slices.open_slice("h100:8"), None)
    assert found["attention"] == "cudnn"
    assert found["device_kind"] == "NVIDIA H100 80GB HBM3"
    assert found["bytes"]["workspace"] == int(256 * slices.WORKSPACE_OF_TOKEN)
    check_tiny(found)


@needs_cuda
@pytest.mark.parametrize("kind", [kind for kind, chip in chips.CHIPS.items() if chip.gpu])
def test_every_gpu_has_a_compiler(kind):
    on = slices.open_slice(f"{kind}:1")
    assert on.devices[0].platform == "gpu"
    assert peak_flops(on.devices[0]) is not None


def check_tiny(found):
    """What the plan of `CONFIG` on eight devices says of whatever kind they are."""
    assert found["fits"] is True
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert found["batch"] == {
        "rows": 16, "sequence": 256, "micro_batch": 1, "rows_at_a_time": 8, "accumulate": 2,
    }  # fmt: skip
    assert found["tokens_per_step"] == 16 * 256
    assert found["flops_per_step"] == train_flops(SIZES, CONFIG.lora, 16 * 256, 16 * 256**2 / 2)
    assert found["argument_bytes"] + found["temp_bytes"] <= found["bytes_per_device"] < found["memory_bytes"]
    assert min(found["bytes"].values()) >= 0
    assert sum(found["bytes"].values()) == found["bytes_per_device"]
    assert found["usable_bytes"] < found["memory_bytes"]
    weights = 2 * matrix_parameters(SIZES) * 7 / 8  # in bfloat16, from the 7 others, in the 2 passes of 2 micro-batches
    assert 0.9 * 4 * weights < found["received_bytes"]["all-gather"] < 1.5 * 4 * weights
    bounds = found["bounds"]
    assert bounds[f"{bounds['bound_by']}_seconds"] == max(
        bounds[f"{name}_seconds"] for name in ("compute", "memory", "links")
    )
    assert 0 < bounds["utilisation_at_most"] <= 1
    json.dumps(found)


@needs_libtpu
def test_what_the_compiler_refuses_is_read_from_its_message(tpus):
    config = dataclasses.replace(CONFIG, micro_batch=1 << 17)
    found = plan.make_plan(config, SIZES, "v5e:2x4", tpus, None)
    assert found["fits"] is False
    assert found["temp_bytes"] > found["memory_bytes"]
    batch = 5 * 4 * (1 << 17) * CONFIG.max_length  # five arrays of four bytes a token
    assert found["argument_bytes"] == pytest.approx(batch, rel=0.01)


@needs_libtpu
def test_bytes_that_are_refused_include_the_arguments(tpus):
    """12 GiB made of an argument of 4, on a chip of 16."""
    layout = make_device_layout("mesh", MeshConfig(1, 1, 1), tpus.devices[:1])

    def program(x):
        made = jnp.sin(jnp.arange(12 * slices.GIB // 4, dtype=jnp.float32) + x[0])
        return jax.lax.optimization_barrier(made)[:10] + x.sum()

    given = slices.abstract(jax.ShapeDtypeStruct((slices.GIB,), jnp.float32), layout, ())
    found, _ = slices.compile_abstract(jax.jit(program), (given,), layout)
    assert found.fits is False
    assert found.arguments == 4 * slices.GIB
    assert found.total == found.arguments + found.temporary == pytest.approx(16 * slices.GIB, rel=0.01)


@pytest.mark.parametrize("first", [1, 2, 4, 8, 12])
@pytest.mark.parametrize("largest", [0, 1, 6, 7, 100])
def test_the_search_ends_at_the_largest_micro_batch_that_fits(first, largest):
    """Memory of 3 + 2 n GiB; the search knows the size of the device only, not where the compiler begins to refuse."""
    seen = []

    def attempt(micro_batch):
        seen.append(micro_batch)
        return Compiled(micro_batch <= largest, (3 + 2 * micro_batch) * slices.GIB, 0, 0, 0.0)

    compiled = {first: attempt(first)}
    assert search_micro_batch(attempt, compiled, 16 * slices.GIB, seconds=10)
    assert max((micro for micro, one in compiled.items() if one.fits), default=0) == largest
    assert not compiled[largest + 1].fits
    assert len(seen) == len(set(seen))


def test_where_memory_is_a_line_the_search_takes_four_sizes():
    seen = []

    def attempt(micro_batch):
        seen.append(micro_batch)
        return Compiled(micro_batch <= 18, (3 + 2 * micro_batch) * slices.GIB, 0, 0, 0.0)

    search_micro_batch(attempt, {2: attempt(2)}, 40 * slices.GIB, seconds=10)
    assert seen == [2, 8, 18, 19]


def test_the_search_says_that_its_time_ran_out():
    compiled = {2: Compiled(True, slices.GIB, 0, 0, seconds=1.0, processor_seconds=5.0)}
    complete = search_micro_batch(lambda _: pytest.fail("no time for another"), compiled, 16 * slices.GIB, seconds=4)
    assert complete is False


def test_time_that_other_work_took_does_not_end_the_search():
    """Each compilation waits long for a processor and uses it briefly."""

    def attempt(micro_batch):
        fits = micro_batch <= 10
        return Compiled(fits, (3 + micro_batch) * slices.GIB, 0, 0, seconds=1000.0, processor_seconds=1.0)

    compiled = {2: attempt(2)}
    assert search_micro_batch(attempt, compiled, 16 * slices.GIB, seconds=100)
    assert max(micro for micro, one in compiled.items() if one.fits) == 10


def fake_compiler(monkeypatch, processor_seconds):
    def compile_step_for(config, sizes, layout):
        fits = config.micro_batch <= 10
        total = (3 + config.micro_batch) * slices.GIB // 2
        return Compiled(fits, total, 0, 0, 1.0, processor_seconds), {}

    monkeypatch.setattr(plan, "compile_step_for", compile_step_for)


@needs_libtpu
def test_a_plan_whose_search_ended_names_the_largest_micro_batch(monkeypatch, tpus, capsys):
    fake_compiler(monkeypatch, 1.0)
    found = plan.make_plan(CONFIG, SIZES, "v5e:2x4", tpus, 100.0)
    assert (found["search"], found["largest_micro_batch"], found["smallest_refused"]) == ("complete", 10, 11)
    progress = capsys.readouterr().err.splitlines()
    assert len(progress) == len(found["compiled"])
    assert progress[0].startswith("micro-batch 1: fits, ")


@needs_libtpu
@pytest.mark.parametrize(
    ("seconds", "fits", "refused", "known"),
    [(3.0, 1, None, "micro-batch 1 fits, what"), (7.0, 4, 16, "micro-batch 4 fits and 16 does not, what")],
)
def test_a_plan_whose_search_was_cut_off_names_no_largest(monkeypatch, tpus, seconds, fits, refused, known):
    fake_compiler(monkeypatch, 2.0)
    found = plan.make_plan(CONFIG, SIZES, "v5e:2x4", tpus, seconds)
    assert found["search"] == OUT_OF_TIME
    assert found["largest_micro_batch"] is None
    assert (found["largest_that_fits"], found["smallest_refused"]) == (fits, refused)
    assert known in search_outcome(found)


@pytest.mark.parametrize(
    "name",
    [
        "v5e",
        "v5e:2by4",
        "v9z:2x4",
        "v5e:2x4x4x4",
        "v5e:8",
        "h100",
        "h100:0",
        "h100:9",
        "h100:2x9",
        "h100:33x8",
        "h100:0x8",
        "h100:1x2x8",
        "rtx4090:2x8",
        "h100:x",
    ],
)
def test_a_bad_topology_is_one_clear_line(name):
    with pytest.raises(UserError, match="--topology"):
        slices.open_slice(name)


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know_is_one_clear_line():
    with pytest.raises(UserError, match="does not know this slice"):
        slices.open_slice("v5e:3x5")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices"), [("v5e:1x1", 1), ("v6e:16x16", 256), ("v5p:1x1x1", 1), ("v5p:4x8x8", 256)]
)
def test_slices_have_from_1_to_256_chips(name, devices):
    on = slices.open_slice(name)
    assert len(on.devices) == devices
    assert slices.nodes_of(make_device_layout("mesh", MeshConfig(-1, 1, 1), on.devices)) == [0] * devices


@needs_libtpu
@pytest.mark.parametrize(("name", "mesh"), [("v6e:16x16", (32, 8, 1)), ("v5p:4x8x8", (16, 8, 2))])
def test_a_mesh_may_cut_an_axis_of_the_slice_in_two(name, mesh):
    layout = make_device_layout("mesh", MeshConfig(*mesh), slices.open_slice(name).devices)
    assert tuple(layout.mesh.shape.values()) == mesh
    assert len({device.id for device in layout.mesh.devices.flat}) == 256


@needs_cuda
def test_copies_on_two_nodes_exchange_gradients_alone_between_them():
    """The adapters' gradients, in bfloat16, each an eighth of them, with one device of the other node."""
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(2, 8, 1))
    found = plan.make_plan(config, SIZES, "h100:2x8", slices.open_slice("h100:2x8"), None)
    assert found["mesh"] == {"data": 2, "fsdp": 8, "tensor": 1}
    between = sum(found["between_nodes_bytes"].values())
    assert between >= 2 * adapter_parameters(SIZES, CONFIG.lora) / 8
    assert between < 0.1 * sum(found["received_bytes"].values())
    assert found["bounds"]["network_seconds"] == pytest.approx(between / 50e9)


@needs_cuda
def test_gpus_stand_in_nodes():
    layout = make_device_layout("mesh", MeshConfig(2, 8, 1), slices.open_slice("h100:2x8").devices)
    assert slices.nodes_of(layout) == [0] * 8 + [1] * 8


@pytest.mark.parametrize(("name", "extra"), [("v5e:2x4", "plan"), ("h100:8", "plan-gpu")])
def test_without_a_compiler_the_message_says_what_to_install(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"medreport-jax\[{extra}\]"):
        slices.open_slice(name)


def test_a_gpu_is_described_to_its_compiler_as_its_data_sheet_says():
    chip = chips.CHIPS["h100"]
    text = " ".join(chips.gpu_target(chip, chip.gpu).split())
    for part in (
        "core_count: 132",
        "memory_bandwidth: 3352320000000",
        "device_memory_size: 84942979072",
        "cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }",
        'device_description_str: "NVIDIA H100 80GB HBM3"',
    ):
        assert part in text
    ada = chips.CHIPS["rtx4090"]
    assert "cuda_compute_capability { major: 8 minor: 9 }" in chips.gpu_target(ada, ada.gpu)


def test_the_peak_of_every_gpu_is_known_by_the_name_that_jax_gives_it():
    for chip in chips.CHIPS.values():
        assert chip.gpu is None or any(re.search(pattern, chip.gpu.name) for pattern, _ in PEAK_FLOPS)


@pytest.mark.parametrize(
    ("work", "bound", "seconds"),
    [((989e12, 0, 0), "compute", 1.0), ((0, 2 * 3352.32e9, 0), "memory", 2.0), ((1e12, 1e9, 3 * 450e9), "links", 3.0)],
)
def test_a_floor_is_the_longest_of_its_parts(work, bound, seconds):
    floor = chips.time_floor(chips.CHIPS["h100"], 989e12, *work)
    assert (floor["bound_by"], floor["seconds_at_least"]) == (bound, pytest.approx(seconds))


def test_what_comes_from_other_nodes_takes_the_slower_way():
    floor = chips.time_floor(chips.CHIPS["h100"], 989e12, 989e12, 3352.32e9 / 2, 900e9, 100e9)
    assert floor["links_seconds"] == pytest.approx(800 / 450)
    assert floor["network_seconds"] == pytest.approx(2.0)
    assert (floor["bound_by"], floor["seconds_at_least"]) == ("network", pytest.approx(2.0))
    assert floor["seconds_without_overlap"] == pytest.approx(1 + 0.5 + 800 / 450 + 2)


def test_an_unknown_preset_exits_with_code_2_and_prints_nothing_else():
    command = [sys.executable, "-m", "launch.cli", "plan", "--preset", "retsta7b", "--topology", "v5e:2x4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --preset retsta7b: unknown")
    assert done.stderr.count("\n") == 1


def test_sizes_are_those_of_a_directory_that_is_named(monkeypatch, tmp_path, capsys):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300, **sizes}))
    monkeypatch.setattr(plan, "open_slice", lambda name: None)
    monkeypatch.setattr(plan, "make_plan", lambda config, sizes, *others: {"sizes": dataclasses.asdict(sizes)})
    monkeypatch.setattr(plan, "plan_standardizing", lambda *_: {})
    wanted = ["--preset", "retsta-7b", "--topology", "v5e:2x4", "--model.base", str(tmp_path)]
    assert plan.main(wanted) == 0
    found = json.loads(capsys.readouterr().out)["sizes"]
    assert found.items() >= {"model_type": "llama", "attention_bias": False, "head_dim": 16, **sizes}.items()
    with pytest.raises(UserError, match=r"--model\.base are for text models"):
        plan.main([*wanted[:1], "deer-mimic", *wanted[2:]])
