"""The plan of frozen language models in 8 and 4 bits, of LoRA and DoRA: bytes by hand, and what is refused."""

import dataclasses
import functools
import math
import re

import jax
import pytest

from common.errors import UserError
from common.models.lora import LoraConfig
from common.models.qwen2_vl_weights import param_shapes
from common.training.flops import adapter_parameters, dense_shapes, matrix_parameters
from common.training.parallel import MeshConfig, make_device_layout
from deer_jax.config import RL_PRESETS, SFT_PRESETS
from launch import plan, plan_deer, plan_deer_sft, plan_shapes, plan_slots
from launch.chips import CHIPS
from launch.plan_deer import QWEN2_5_VL_3B
from launch.slices import Slice
from tests.launch import test_plan, test_plan_deer, test_plan_deer_sft

LANGUAGE = QWEN2_5_VL_3B.language
HEAD = LANGUAGE.vocab_size * LANGUAGE.hidden_size
LAYERS = matrix_parameters(LANGUAGE) - HEAD
WIDTHS = {"float32": 4, "bfloat16": 2, "int8": 1, "nf4": 0.5}


def changed(config, tuning, param_dtype, **lora):
    model = dataclasses.replace(config.model, tuning=tuning, param_dtype=param_dtype)
    return dataclasses.replace(config, model=model, lora=LoraConfig(**lora))


def size(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_3b_model_takes_the_bytes_of_its_weights_and_steps(bits):
    """Steps: in int8 one of float32 for each output, in nf4 one for each 64 weights. The rest has 16 bits."""
    trainable, frozen = plan_shapes.study_trees(changed(RL_PRESETS["mimic-cxr"], "lora", bits), shapes())
    own = dense_shapes(LANGUAGE).values()
    layers = LANGUAGE.num_hidden_layers
    steps = {"int8": 4 * layers * sum(outputs for _, outputs in own), "nf4": 4 * LAYERS // 64}.get(bits, 0)
    width = 4 if bits == "float32" else 2
    norms = (2 * layers + 1) * LANGUAGE.hidden_size
    biases = layers * sum(outputs for name, (_, outputs) in dense_shapes(LANGUAGE).items() if name[0] in "qkv")
    assert size(frozen["language"]) == WIDTHS[bits] * LAYERS + steps + width * (HEAD + norms + biases)
    assert size(frozen["visual"]) == width * size(shapes()["visual"]) // 4
    assert size(trainable) == 4 * adapter_parameters(LANGUAGE, LoraConfig())


@functools.cache
def shapes():
    return param_shapes(QWEN2_5_VL_3B)


def test_what_is_trained_is_in_float32_and_dora_has_a_magnitude_for_each_output():
    vision, frozen = plan_shapes.study_trees(changed(SFT_PRESETS["mimic-cxr"], "vision", "int8"), shapes())
    assert size(vision) == size(shapes()["visual"])
    assert frozen.keys() == {"language"}
    dora, _ = plan_shapes.study_trees(changed(RL_PRESETS["mimic-cxr"], "lora", "nf4", dora=True), shapes())
    magnitudes = LANGUAGE.num_hidden_layers * sum(outputs for _, outputs in dense_shapes(LANGUAGE).values())
    assert size(dora) == 4 * (adapter_parameters(LANGUAGE, LoraConfig()) + magnitudes)
    whole, nothing = plan_shapes.study_trees(changed(RL_PRESETS["mimic-cxr"], "full", "int8"), shapes())
    assert (size(whole), nothing) == (size(shapes()), {})


def test_bounds_count_what_is_read_of_a_frozen_model_and_no_gradient_of_its_own():
    here = Slice(CHIPS["h100"], jax.devices()[:1])
    layout = make_device_layout("mesh", MeshConfig(1, 1, 1), here.devices)
    full, lora, int8 = (
        plan_deer.stages_of(changed(RL_PRESETS["mimic-cxr"], *chosen), QWEN2_5_VL_3B, layout, 64)
        for chosen in (("full", "bfloat16"), ("lora", "bfloat16"), ("lora", "int8"))
    )
    assert lora["decode"] == full["decode"]
    new = RL_PRESETS["mimic-cxr"].rollout.max_new_tokens
    assert full["decode"].memory_bytes - int8["decode"].memory_bytes == pytest.approx(new * LAYERS)
    assert int8["update"].flops == lora["update"].flops < full["update"].flops * 3 / 4
    assert int8["update"].memory_bytes < lora["update"].memory_bytes < full["update"].memory_bytes
    writing = plan_deer.sampling("deer-mimic")
    own, fewer = (
        plan_slots.pass_bounds(one, 0, here)["memory_seconds"]
        for one in (writing, plan_deer.sampling("deer-mimic", "int8"))
    )
    assert own - fewer == pytest.approx(LAYERS / CHIPS["h100"].bandwidth)


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param("v5e:2x4", marks=test_plan.needs_libtpu),
        pytest.param("h100:8", marks=test_plan.needs_cuda),
    ],
)
def test_a_tiny_step_on_4_bits_compiles_and_takes_fewer_bytes(topology):
    """Two layers of 64 to 128; a device of eight has an eighth of them and of the embedding."""
    found = {}
    for bits in ("bfloat16", "nf4"):
        config = changed(test_plan_deer_sft.CONFIG, "lora", bits, rank=4)
        found[bits] = plan_deer_sft.plan_step(config, test_plan_deer.SIZES, topology)
        assert found[bits]["fits"] is True
        assert sum(found[bits]["bytes"].values()) == found[bits]["bytes_per_device"]
    language = test_plan_deer.SIZES.language
    layers = matrix_parameters(language) - language.vocab_size * language.hidden_size
    saved = found["bfloat16"]["bytes"]["parameters"] - found["nf4"]["bytes"]["parameters"]
    assert saved == layers * (2 - 0.5) / 8 - 4 * layers / 64  # steps are on every device


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("deer-mimic --param-dtype int8", "--param-dtype: not read with --tuning full; give --tuning vision or lora"),
        ("deer-sft-mimic --dora", "--dora: not read with --tuning vision; give --tuning lora, or leave it out"),
        ("retsta-7b --tuning full --param-dtype nf4", "--param-dtype: not read with --tuning full; give --tuning lora"),
        ("retsta-7b --tuning vision", "--preset retsta-7b: --tuning is vision; expected lora or full"),
        (
            "iu-xray --dora",
            "--preset iu-xray: --remat, --param-dtype, --tuning, --dora, --sequence and --model.base are ",
        ),
        (
            "deer-mimic --sequence 64",
            "--preset deer-mimic: --sequence and --model.base are for text models; leave them",
        ),
    ],
)
def test_options_that_a_preset_does_not_read_are_one_line(monkeypatch, options, message):
    monkeypatch.setattr(plan, "open_slice", lambda name: pytest.fail("nothing is to be compiled"))
    with pytest.raises(UserError, match=re.escape(message)):
        plan.main(["--topology", "v5e:1x1", "--preset", *options.split()])


def test_the_command_plans_what_is_asked_for(monkeypatch, capsys):
    planned = {}
    monkeypatch.setattr(plan, "open_slice", lambda name: None)
    monkeypatch.setattr(plan, "plan_writing", lambda writing, on: planned.update(writing=writing) or {})
    monkeypatch.setattr(plan_deer, "plan_step", lambda config, *_: planned.update(config=config) or {})
    options = ["--tuning", "lora", "--param-dtype", "nf4", "--dora", "--remat", "dots", "--micro-batch", "2"]
    assert plan.main(["--preset", "deer-mimic", "--topology", "v5e:1x1", *options]) == 0
    model, lora = planned["config"].model, planned["config"].lora
    assert (model.tuning, model.param_dtype, model.remat, lora.dora) == ("lora", "nf4", "dots", True)
    assert planned["config"].micro_batch == 2
    assert size(planned["writing"].weights.frozen["language"]) < LAYERS + 2 * HEAD
