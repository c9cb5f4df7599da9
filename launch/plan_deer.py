"""`medreport plan` for DEER: rollout and update of reinforcement learning, compiled for a TPU slice.

The model is Qwen2.5-VL-3B. The bounds are arithmetic on data sheets: a decode step reads every weight and each cache
once, an update takes its FLOPs; no step can take less time than the sum.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import SHARDING_RULES, Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_layout import image_tokens, vision_layout
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_vl_weights import param_shapes
from common.training.flops import attention_flops, forward_flops, matrix_parameters, peak_flops
from common.training.optim import make_optimizer
from common.training.parallel import DeviceLayout, batch_sharding, check_heads, make_device_layout
from common.training.step import init_state, make_train_step
from deer_jax.config import RL_PRESETS, RlConfig
from deer_jax.ditpo import PolicyParams, Rollouts, make_loss
from deer_jax.prompts import MULTIPLE, StudyPrompts
from deer_jax.vision_policy import split_params, vision_policy
from launch.slices import CHIPS, USABLE, Chip, abstract, compile_abstract, topology_devices

PLANNED = {"deer-mimic": "mimic-cxr", "deer-chexpert-plus": "chexpert-plus"}
QWEN2_5_VL_3B = Qwen2VLConfig(
    Qwen2Config(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
        head_dim=128, vocab_size=151_936, tie_word_embeddings=True, mrope_section=(16, 24, 24),
    ),
    VisionConfig(),
)  # fmt: skip
WORDS = 40  # of the prompt beside its images, about
STOP = (151_645, 151_643)


def make_plan(preset: str, topology: str, micro_batch: int | None, loss_chunk: int | None) -> dict[str, Any]:
    """Compile both programs of a step for the slice; a device takes `micro_batch` studies at a time."""
    config = RL_PRESETS[PLANNED[preset]]
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, loss_chunk=loss_chunk or config.model.loss_chunk),
        micro_batch=micro_batch or config.micro_batch,
    )
    return plan_step(config, QWEN2_5_VL_3B, topology)


def plan_step(config: RlConfig, model: Qwen2VLConfig, topology: str) -> dict[str, Any]:
    """`make_plan` for any config and sizes."""
    started = time.perf_counter()
    devices = topology_devices(topology)
    layout = make_device_layout("mesh", config.mesh, devices)
    check_heads(model.language.num_key_value_heads, layout)
    chip = CHIPS[topology.partition(":")[0]]
    sizes = as_computed(config, model)
    at_a_time = layout.row_shards * config.micro_batch
    accumulate = max(config.batch_size // at_a_time, 1)
    studies = at_a_time * accumulate
    found = compile_programs(config, sizes, layout, studies, accumulate)
    batch = {"studies": studies, "group": config.rollout.group, "new_tokens": config.rollout.max_new_tokens}
    batch |= {"micro_batch": config.micro_batch, "accumulate": accumulate, "prompt": prompt_tokens(config, sizes)}
    return {
        "topology": topology,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "mesh": dict(layout.mesh.shape),
        "batch": batch,
        "fits": all(one.fits and one.total <= USABLE * chip.hbm for one in found.values()),
        "hbm_bytes": int(chip.hbm),
        "programs": {
            name: {
                "bytes_per_device": one.total,
                "argument_bytes": one.arguments,
                "temp_bytes": one.temporary,
                "compile_seconds": round(one.seconds, 1),
            }
            for name, one in found.items()
        },
        "bounds": time_bounds(config, sizes, layout, studies, chip),
        "plan_seconds": round(time.perf_counter() - started, 1),
    }


def as_computed(config: RlConfig, sizes: Qwen2VLConfig) -> Qwen2VLConfig:
    """The model as the preset computes with it."""
    options: dict[str, Any] = {"dtype": config.model.dtype, "remat": config.model.remat}
    parts = {name: dataclasses.replace(getattr(sizes, name), **options) for name in ("language", "vision")}
    return dataclasses.replace(sizes, **parts)


def prompt_tokens(config: RlConfig, sizes: Qwen2VLConfig) -> int:
    """Columns of a prompt."""
    patches = config.data.side // sizes.vision.patch_size
    each = image_tokens(sizes.vision, (patches, patches))
    return -(-(config.data.views * (each + 2) + WORDS) // MULTIPLE) * MULTIPLE


def compile_programs(
    config: RlConfig, sizes: Qwen2VLConfig, layout: DeviceLayout, studies: int, accumulate: int
) -> dict[str, Any]:
    """What the compiler says of the rollout and of the update."""
    patches = config.data.side // sizes.vision.patch_size
    rollout, length = config.rollout, prompt_tokens(config, sizes)
    settings = DecodeSettings(
        rollout.max_new_tokens, Sampling(temperature=rollout.temperature, top_p=rollout.top_p), stop_ids=STOP
    )
    images = vision_layout(sizes.vision, (patches, patches))
    policy = vision_policy(sizes, images, settings, config.lora, config.model.loss_chunk)
    trainable, frozen = split_params(param_shapes(sizes), config.model.tuning)
    tx = make_optimizer(config.optim, 1000)
    state = abstract(jax.eval_shape(lambda tree: init_state(tree, tx), trainable), layout, SHARDING_RULES)
    fixed = abstract(frozen, layout, SHARDING_RULES)
    key = abstract(jax.eval_shape(lambda: jax.random.key(0)), layout, ())

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((studies, *shape), dtype, sharding=batch_sharding(layout))

    whole, group, new = array(jnp.int32, length), rollout.group, rollout.max_new_tokens
    rows = StudyRows(whole, array(jnp.bool_, length), array(jnp.int32, 3, length), whole, array(jnp.int32))
    prompts = StudyPrompts(rows, array(jnp.uint8, config.data.views, config.data.side, config.data.side))

    def sample(state: Any, frozen: Any, prompts: StudyPrompts, rng: Array) -> Any:
        return policy.sample(PolicyParams(state.trainable, frozen), prompts, jax.random.split(rng, studies), group)

    tokens, real = array(jnp.int32, group, new), array(jnp.float32, group, new)
    rollouts = Rollouts(prompts, tokens, array(jnp.bool_, group, new), real, array(jnp.float32, group), real)
    update = make_train_step(make_loss(policy, config.objective), tx, accumulate)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    run = functools.partial(compile_abstract, layout=layout)
    sampling = jax.jit(sample, out_shardings=batch_sharding(layout), keep_unused=True)  # Adam is resident too
    updating = jax.jit(update, donate_argnums=0, out_shardings=(kept, None))
    return {
        "rollout": run(sampling, (state, fixed, prompts, key))[0],
        "update": run(updating, (state, fixed, rollouts, key))[0],
    }


def time_bounds(
    config: RlConfig, sizes: Qwen2VLConfig, layout: DeviceLayout, studies: int, chip: Chip
) -> dict[str, Any]:
    """Lower bounds on the seconds of a step whose reports all have full length, and the rollout's tokens a second.

    Rollout: the prefill by its FLOPs, then for each token the reading of the weights of the language model and of the
    cache, or its FLOPs where these take longer. Update: forward and backward FLOPs, recomputation included. Gathering
    of weights is taken to overlap with all of it.
    """
    peak = (peak_flops(layout.mesh.devices.flat[0]) or math.inf) * layout.mesh.size
    language, new = sizes.language, config.rollout.max_new_tokens
    prompt, rows = prompt_tokens(config, sizes), studies * config.rollout.group
    vision = studies * config.data.views * vision_flops(sizes.vision, config.data.side)
    read = forward_flops(language, studies * prompt, studies * prompt**2 / 2)
    pairs = rows * (new * prompt + new**2 / 2)
    written = forward_flops(language, rows * new, pairs)

    width = jnp.dtype(config.model.dtype).itemsize
    weights = matrix_parameters(language) * width / layout.mesh.shape["tensor"]
    per_token = 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim * width
    cache = (studies * prompt + rows * new / 2) * per_token / layout.mesh.size
    decode = new * max((weights + cache) / chip.hbm_bandwidth, written / new / peak)
    prefill = (vision + read) / peak

    # Recomputed under remat are the layers, not the head.
    head = 2.0 * (studies * prompt + rows * new) * language.vocab_size * language.hidden_size
    passes = 4 if config.model.remat == "full" else 3
    scored = read + written - head
    update = (passes * (vision + scored) + 3 * 2.0 * rows * new * language.vocab_size * language.hidden_size) / peak
    return {
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "update_seconds": update,
        "step_seconds_at_least": prefill + decode + update,
        "decode_bound_by": "hbm" if (weights + cache) / chip.hbm_bandwidth > written / new / peak else "compute",
        "rollout_tokens_per_second_at_most": rows * new / (prefill + decode),
        "flops_of_attention_in_update": passes * attention_flops(language, pairs),
    }


def vision_flops(config: VisionConfig, side: int) -> float:
    """Model FLOPs of the tower's forward pass for one square image."""
    patches = (side // config.patch_size) ** 2
    width, hidden = config.hidden_size, config.intermediate_size
    block = 4 * width * width + 3 * width * hidden
    merged = width * config.spatial_merge_size**2
    merger = merged * merged + merged * config.out_hidden_size
    matrices = config.depth * block + config.patch_features * width
    whole = len(config.fullatt_block_indexes)
    pairs = patches * (whole * patches + (config.depth - whole) * config.window_patches)
    return 2.0 * (patches * matrices + patches / config.spatial_merge_size**2 * merger) + 4.0 * pairs * width
