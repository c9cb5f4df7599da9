"""Programs of the systems as they are lowered for GPUs and TPUs, of which none is needed: what is in their text.

Each is traced from shapes alone, with computation in bfloat16 as on these platforms.
"""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from common.generation.draft_length import draft_lengths
from common.generation.drafts import Table
from common.generation.generate import DecodeSettings, qwen2_decoder
from common.generation.sampling import Sampling
from common.generation.slots import Request, slot_programs
from common.models.decoding import Prompts
from common.models.lora import LoraConfig, init_lora
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_layout import vision_layout
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_vl_weights import param_shapes as vl_shapes
from common.models.qwen2_weights import param_shapes
from common.training.sft import sft_loss
from common.training.step import init_state, make_train_step
from common.types import TextBatch
from deer_jax.ditpo import Rollouts, make_loss
from deer_jax.objective import Objective
from deer_jax.prompts import StudyPrompts
from deer_jax.vision_policy import split_params, vision_policy
from tests.programs import PROGRAMS, lowered, rearranged_stacks, unicross_loss

ROWS, GROUP = 2, 2
# Lengths that are no width of a model: of rows and prompts, of continuations, of patches and of a window's patches.
LENGTH, CONTINUED, PATCHES, WINDOW = 768, 640, 1024, 64
SIDE = 448  # pixels
LANGUAGE = Qwen2Config(
    vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=128, mrope_section=(16, 24, 24), dtype="bfloat16", param_dtype="bfloat16",
    remat="full",
)  # fmt: skip
VISION = VisionConfig(
    depth=3, hidden_size=96, intermediate_size=112, num_heads=4, out_hidden_size=48, fullatt_block_indexes=(2,),
    dtype="bfloat16", param_dtype="bfloat16", remat="full",
)  # fmt: skip
TX = optax.adamw(1e-3)
LORA = LoraConfig(rank=2, dropout=0.1)


@pytest.fixture(params=["cuda", "tpu"])
def platform(request, monkeypatch):
    """Programs are traced as on this platform; the version of cuDNN is that of JAX 0.10.2's wheels."""
    found = {"cuda": "gpu"}.get(request.param, request.param)
    monkeypatch.setattr(jax, "default_backend", lambda: found)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000)
    return request.param


def array(dtype, *shape):
    return jax.ShapeDtypeStruct((ROWS, *shape), dtype)


KEY = jax.eval_shape(lambda: jax.random.key(0))


def update(loss, trainable, frozen, batch, *platforms):
    """The texts of a step whose state is donated, and the state."""
    state = jax.eval_shape(lambda tree: init_state(tree, TX), trainable)
    return *lowered(make_train_step(loss, TX), (state, frozen, batch, KEY), *platforms, donate_argnums=0), state


def sft(packed, platform, length=LENGTH, **changes):
    config = dataclasses.replace(LANGUAGE, mrope_section=(), **changes)
    base = param_shapes(config)
    adapter = jax.eval_shape(lambda: init_lora(base, LORA, jax.random.key(0), base))
    whole, real = (array(dtype, length) for dtype in (jnp.int32, jnp.float32))
    loss = functools.partial(sft_loss, config=config, lora=LORA, chunk=32, packed=packed)
    text, state = update(loss, adapter, {"params": base}, TextBatch(whole, whole, real, whole, whole), platform)
    return text, state, base


def deer(platform):
    """An update of the whole vision-language model."""
    sizes = Qwen2VLConfig(LANGUAGE, VISION, 90, 91, 92, 93, 94)
    trainable, frozen = split_params(vl_shapes(sizes), "full")
    trainable = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), trainable)
    side = SIDE // VISION.patch_size
    policy = vision_policy(
        sizes, vision_layout(VISION, (side, side)), DecodeSettings(CONTINUED, Sampling(1.0)), chunk=32
    )
    whole = array(jnp.int32, LENGTH)
    rows = StudyRows(whole, array(jnp.bool_, LENGTH), array(jnp.int32, 3, LENGTH), whole, array(jnp.int32))
    prompts = StudyPrompts(rows, array(jnp.uint8, 1, SIDE, SIDE))
    tokens, mask, real = (array(dtype, GROUP, CONTINUED) for dtype in (jnp.int32, jnp.bool_, jnp.float32))
    rollouts = Rollouts(prompts, tokens, mask, real, array(jnp.float32, GROUP), real)
    text, state = update(make_loss(policy, Objective()), trainable, frozen, rollouts, platform)
    return text, state, trainable


def kernels(text):
    """Calls of fused kernels by name: forward and backward passes of cuDNN with or without a mask, or Pallas calls."""
    names = re.findall(r"custom_call @(__cudnn\$fmha\w+|tpu_custom_call)", text)
    return {name.removeprefix("__cudnn$fmha"): names.count(name) for name in names}


def masks(text):
    """How each call of cuDNN masks by itself."""
    configs = re.findall(r'custom_call @__cudnn\$fmha.*?backend_config = "(.*?)"', text)
    found = [json.loads(re.sub(r"\\22", '"', config))["cudnn_fmha_backend_config"] for config in configs]
    return [config["mask_type"] for config in found]


def scores(text, queries, keys, dtype="f32"):
    """Types of tensors [... queries keys], where queries may be of several heads."""
    found = set(re.findall(rf"tensor<((?:\d+x){{4,}}{dtype})>", text))
    sizes = {shape: [int(size) for size in shape.split("x")[:-1]] for shape in found}
    return {shape for shape, (*_, rows, columns) in sizes.items() if columns == keys and rows % queries == 0}


def donated(text):
    """How many arguments give their memory to results."""
    return len(re.findall(r"tf\.aliasing_output|jax\.buffer_donor", text.partition("{\n    ")[0]))


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_of_fine_tuning(packed, platform):
    text, state, base = sft(packed, platform)
    if platform == "tpu":
        assert kernels(text).keys() == {"tpu_custom_call"}
    else:
        mask = "ScaleBias" if packed else ""
        assert kernels(text) == {f"{mask}Softmax": 2, f"{mask}SoftmaxBackward": 1}  # forward again under remat
        assert masks(text) == ["CAUSAL"] * 3
        assert bool(scores(text, LENGTH, LENGTH, "bf16")) is packed
    assert not scores(text, LENGTH, LENGTH)
    assert not rearranged_stacks(base, text, "bf16")
    assert donated(text) == len(jax.tree.leaves(state))


@pytest.mark.parametrize("packed", [True, False])
def test_odd_lengths_take_the_kernel_too(packed, platform):
    text, *_ = sft(packed, platform, length=LENGTH - 1)
    assert bool(kernels(text)) is (platform == "cuda")
    assert bool(scores(text, LENGTH - 1, LENGTH - 1)) is (platform == "tpu")


def test_scores_and_their_masks_are_found_where_they_are(platform):
    text, *_ = sft(True, platform, attention="xla")
    assert not kernels(text)
    assert scores(text, LENGTH, LENGTH)
    assert scores(text, LENGTH, LENGTH, "i1")


def test_an_update_of_deer(platform):
    text, state, trainable = deer(platform)
    assert not scores(text, CONTINUED, LENGTH)
    assert not scores(text, CONTINUED, CONTINUED)
    assert not scores(text, CONTINUED, LENGTH + CONTINUED)
    assert not scores(text, LENGTH, LENGTH)
    assert not scores(text, PATCHES, PATCHES)
    if platform == "tpu":
        assert scores(text, WINDOW, WINDOW)  # as the table says
    else:
        assert not scores(text, WINDOW, WINDOW)
        assert kernels(text).keys() == {"Softmax", "SoftmaxBackward", "ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward"}
        assert {*masks(text)} == {"CAUSAL", "NO_MASK"}
        assert not scores(text, LENGTH, LENGTH, "bf16")  # prompts are padded on the left, and need no mask
    assert not rearranged_stacks(trainable, text)
    assert not rearranged_stacks(trainable, text, "bf16")
    assert donated(text) == len(jax.tree.leaves(state))


def test_a_step_of_unicross(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loss, (trainable, frozen, batch) = unicross_loss(3)
    *texts, state = update(loss, trainable, frozen, batch, "cuda", "tpu")
    for text in texts:
        assert not kernels(text)  # as the table says
        assert not rearranged_stacks(frozen, text)
        assert donated(text) == len(jax.tree.leaves(state))


def test_labels_and_saliency(platform):
    program = PROGRAMS["saliency"](3)
    (text,) = lowered(program.function, program.arguments, platform)
    assert not kernels(text)
    assert not rearranged_stacks(program.weights, text)
    products = re.findall(r"stablehlo\.dot_general.*", text)
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)  # no TF32, no bfloat16


@pytest.mark.parametrize("drafts", [0, 8])
def test_slots(platform, drafts):
    """The state stays where it is, and weights are read as they are stored."""
    config = dataclasses.replace(LANGUAGE, mrope_section=(), remat="none")
    settings = DecodeSettings(CONTINUED, Sampling(1.0), group=GROUP, stop_ids=(1,), drafts=drafts)
    programs = slot_programs(qwen2_decoder(config), settings, size=8)
    weights = {"params": param_shapes(config)}
    seed = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    reference = array(jnp.int32, 64) if drafts else None
    batch = Request(array(jnp.int32), Prompts(array(jnp.int32, LENGTH), array(jnp.bool_, LENGTH)), reference)
    state = jax.eval_shape(programs.empty, weights, seed, batch)
    count = len(jax.tree.leaves(state))
    (text,) = lowered(programs.admit, (weights, seed, batch, state, array(jnp.int32)), platform, donate_argnums=3)
    assert donated(text) == count
    assert rearranged_stacks(weights, text, "bf16") == []
    table = Table(jax.ShapeDtypeStruct((1024,), jnp.uint32), jax.ShapeDtypeStruct((1024, 8), jnp.int32))
    enough = jax.ShapeDtypeStruct((), jnp.int32)
    prepared = jax.eval_shape(programs.prepare, weights)
    assert jax.tree.structure(prepared) == jax.tree.structure(weights)
    for number in draft_lengths(drafts):
        advance = functools.partial(programs.advance, drafts=number)
        (text,) = lowered(advance, (prepared, state, table, enough), platform, donate_argnums=1)
        assert donated(text) == count
        assert rearranged_stacks(prepared, text, "bf16") == []
