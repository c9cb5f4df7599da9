"""The plan of DEER's step: both programs compile for a slice at toy size, and its bounds count what is computed."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig
from common.models.qwen2_vl_layout import vision_layout
from common.models.qwen2_vl_vision import VisionConfig, VisionTower, init_params
from common.training.traced_flops import Runs, traced_flops
from deer_jax.config import RL_PRESETS
from launch.plan_deer import QWEN2_5_VL_3B, plan_step, vision_flops

VISION = VisionConfig(
    depth=3, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=64, fullatt_block_indexes=(2,)
)
SIZES = Qwen2VLConfig(
    Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, mrope_section=(2, 3, 3),
    ),
    VISION, 500, 501, 502, 503, 504,
)  # fmt: skip
PRESET = RL_PRESETS["mimic-cxr"]
CONFIG = dataclasses.replace(
    PRESET,
    data=dataclasses.replace(PRESET.data, side=112),
    rollout=dataclasses.replace(PRESET.rollout, group=2, max_new_tokens=8),
    batch_size=16,
    micro_batch=1,
)


def test_the_sizes_are_those_of_the_published_3b_model():
    from common.models.qwen2_vl_weights import param_shapes

    leaves = jax.tree.leaves(param_shapes(QWEN2_5_VL_3B))
    assert sum(leaf.size for leaf in leaves) == 3_754_622_976


def test_the_towers_flops_are_those_of_its_products():
    side, patches = 224, (224 // 14) ** 2
    layout = vision_layout(VISION, (16, 16))
    params = jax.eval_shape(lambda: init_params(VISION, jax.random.key(0)))
    images = jnp.zeros((1, patches, VISION.patch_features))
    runs = Runs(true_share=VISION.full_attention_share)
    traced = traced_flops(lambda p, x: VisionTower(VISION).apply({"params": p}, x, layout), params, images, runs=runs)
    assert vision_flops(VISION, side) == pytest.approx(traced, rel=1e-6)


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(
            "v5e:2x4",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("libtpu") is None, reason="the compiler for TPUs is not installed"
            ),
        ),
        pytest.param(
            "h100:8",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("jax_cuda12_plugin") is None, reason="the compiler for GPUs is not installed"
            ),
        ),
    ],
)
def test_a_tiny_step_compiles_for_devices_that_are_not_there(topology):
    found = plan_step(CONFIG, SIZES, topology)
    assert found["fits"] is True
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert found["batch"] == {
        "studies": 16, "group": 2, "new_tokens": 8, "micro_batch": 1, "accumulate": 2, "prompt": 64,
    }  # fmt: skip
    assert found["programs"].keys() == {"rollout", "update"}
    for program in found["programs"].values():
        assert min(program["bytes"].values()) >= 0
        assert sum(program["bytes"].values()) == program["bytes_per_device"]
    # 2 studies a device, each a prompt of 64 and 2 reports of 8 tokens, in 2 layers of 2 heads of 16, in bfloat16.
    assert found["programs"]["rollout"]["bytes"]["caches"] == 2 * (64 + 2 * 8) * 2 * 2 * 2 * 16 * 2
    assert found["programs"]["rollout"]["caches"] == {
        "prompts": 2 * 64 * 2 * 2 * 2 * 16 * 2, "continuations": 2 * 2 * 8 * 2 * 2 * 2 * 16 * 2,
    }  # fmt: skip
    bounds = found["bounds"]
    parts = [bounds[f"{part}_seconds"] for part in ("prefill", "decode", "update")]
    assert min(parts) > 0
    assert bounds["seconds_at_least"] == pytest.approx(sum(parts))
    assert bounds["decode_bound_by"] == "memory"
    json.dumps(found)
