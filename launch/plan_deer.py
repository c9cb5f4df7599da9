"""`medreport plan` for DEER: rollout and update of reinforcement learning, compiled for a TPU slice or a node of GPUs.

The model is Qwen2.5-VL-3B. The bounds are arithmetic on data sheets: a decode step reads every weight and each cache
once, an update takes its FLOPs; no step can take less time than the sum.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from common.generation.draft_sources import DRAFT_TOKENS
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.models.lora import LoraConfig
from common.models.quantized import stored_as
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import SHARDING_RULES, Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_layout import image_tokens, vision_layout
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_vl_weights import param_shapes
from common.training.flops import attention_flops, forward_flops
from common.training.optim import make_optimizer
from common.training.parallel import DeviceLayout, MeshConfig, batch_sharding, check_heads, make_device_layout
from common.training.step import init_state, make_train_step
from deer_jax.config import RL_PRESETS, SAMPLE_PRESETS, RlConfig, RunConfig, SampleConfig
from deer_jax.ditpo import PolicyParams, Rollouts, make_loss
from deer_jax.prompts import MULTIPLE, StudyPrompts
from deer_jax.vision_policy import study_decoder, vision_policy, without_images
from launch.micro_batch_search import Compiled
from launch.plan_shapes import decoder_bytes, part_bytes, study_params, study_trees
from launch.plan_slots import Writing
from launch.slices import (
    Slice,
    abstract,
    attention_of,
    bytes_by_kind,
    compile_abstract,
    elements,
    open_slice,
    with_workspace,
)
from launch.steps import Batch, Exchanged, Step, Work, floor_of, micro_batch_of, resident_bytes

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


def config_of(preset: str) -> RlConfig:
    """The config of a preset."""
    return RL_PRESETS[PLANNED[preset]]


def plan_step(config: RlConfig, model: Qwen2VLConfig, topology: str) -> dict[str, Any]:
    """Compile both programs of a step for the slice."""
    started = time.perf_counter()
    on = open_slice(topology)
    layout = make_device_layout("mesh", config.mesh, on.devices)
    check_heads(model.language.num_key_value_heads, layout)
    sizes = as_computed(config, model)
    at_a_time = layout.row_shards * config.micro_batch
    accumulate = max(config.batch_size // at_a_time, 1)
    studies = at_a_time * accumulate
    found = compile_programs(config, sizes, layout, studies, accumulate)
    caches = {"rollout": {"caches": cache_bytes(config, sizes, layout, studies)}}
    batch = {"studies": studies, "group": config.rollout.group, "new_tokens": config.rollout.max_new_tokens}
    batch |= {"micro_batch": config.micro_batch, "accumulate": accumulate, "prompt": prompt_tokens(config, sizes)}
    return {
        "topology": topology,
        "device_kind": on.devices[0].device_kind,
        "devices": len(on.devices),
        "mesh": dict(layout.mesh.shape),
        "batch": batch,
        "fits": all(one.fits and one.total <= on.chip.usable * on.chip.memory for one, _ in found.values()),
        "memory_bytes": on.chip.memory,
        "usable_bytes": int(on.chip.usable * on.chip.memory),
        "programs": {
            name: {
                "bytes_per_device": one.total,
                "argument_bytes": one.arguments,
                "temp_bytes": one.temporary,
                "received_bytes": one.received,
                "between_nodes_bytes": one.between,
                "bytes": kinds,
                **caches.get(name, {}),
                "compile_seconds": round(one.seconds, 1),
            }
            for name, (one, kinds) in found.items()
        },
        "bounds": time_bounds(config, sizes, layout, studies, on, {name: one for name, (one, _) in found.items()}),
        "plan_seconds": round(time.perf_counter() - started, 1),
    }


def sampling(preset: str, param_dtype: str | None = None) -> Writing:
    """`deer sample` with the preset's settings, whose drafts come from training reports."""
    config = SAMPLE_PRESETS[PLANNED[preset]]
    stored: Any = param_dtype or config.model.param_dtype
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, param_dtype=stored))
    return sampling_of(config, QWEN2_5_VL_3B)


def sampling_of(config: SampleConfig, model: Qwen2VLConfig) -> Writing:
    """`sampling` for any config and sizes."""
    sizes, rollout = as_computed(config, model), config.rollout
    settings = DecodeSettings(
        rollout.max_new_tokens,
        Sampling(temperature=rollout.temperature, top_p=rollout.top_p),
        group=rollout.group,
        stop_ids=STOP,
        drafts=DRAFT_TOKENS,
    )
    length, side = prompt_tokens(config, sizes), config.data.side
    whole = jax.ShapeDtypeStruct((length,), jnp.int32)
    arrays: Any = (
        whole, jax.ShapeDtypeStruct((length,), bool), jax.ShapeDtypeStruct((3, length), jnp.int32), whole,
        jax.ShapeDtypeStruct((), jnp.int32),
    )  # fmt: skip
    images: Any = jax.ShapeDtypeStruct((config.data.views, side, side), jnp.uint8)
    full = config.model.tuning == "full"
    stored = "float32" if full else stored_as(config.model.param_dtype)[0]
    return Writing(
        "deer sample",
        study_decoder(sizes, vision_layout(sizes.vision, patches_of(config, sizes)), LoraConfig()),
        without_images(settings, sizes),
        config.batch_size,
        PolicyParams({}, study_params(config.model, param_shapes(sizes))),
        StudyPrompts(StudyRows(*arrays), images),
        length,
        table=True,
        language=dataclasses.replace(sizes.language, param_dtype=stored),
        stored="" if full else config.model.param_dtype,
    )


def as_computed(config: RunConfig | SampleConfig, sizes: Qwen2VLConfig) -> Qwen2VLConfig:
    """The model as the preset computes with it."""
    options: dict[str, Any] = {"dtype": config.model.dtype, "remat": config.model.remat}
    parts = {name: dataclasses.replace(getattr(sizes, name), **options) for name in ("language", "vision")}
    return dataclasses.replace(sizes, **parts)


def patches_of(config: RunConfig | SampleConfig, sizes: Qwen2VLConfig) -> tuple[int, int]:
    """Rows and columns of the patches of an image."""
    patches = config.data.side // sizes.vision.patch_size
    return patches, patches


def prompt_tokens(config: RunConfig | SampleConfig, sizes: Qwen2VLConfig) -> int:
    """Columns of a prompt."""
    each = image_tokens(sizes.vision, patches_of(config, sizes))
    return -(-(config.data.views * (each + 2) + WORDS) // MULTIPLE) * MULTIPLE


def compile_programs(
    config: RlConfig, sizes: Qwen2VLConfig, layout: DeviceLayout, studies: int, accumulate: int
) -> dict[str, tuple[Compiled, dict[str, int]]]:
    """What the compiler says of the rollout and of the update, and their bytes by kind."""
    rollout, length = config.rollout, prompt_tokens(config, sizes)
    settings = DecodeSettings(
        rollout.max_new_tokens, Sampling(temperature=rollout.temperature, top_p=rollout.top_p), stop_ids=STOP
    )
    images = vision_layout(sizes.vision, patches_of(config, sizes))
    policy = vision_policy(sizes, images, settings, config.lora, config.model.loss_chunk)
    trainable, frozen = study_trees(config, param_shapes(sizes))
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
    sampled, _ = run(sampling, (state, fixed, prompts, key))
    updated, _ = run(updating, (state, fixed, rollouts, key))
    if uses_cudnn(config, sizes, layout):
        # Gradients of prompts and images go through it; reports do not.
        patches = config.data.views * math.prod(patches_of(config, sizes))
        updated = with_workspace(updated, config.micro_batch * (length + patches))
    caches = cache_bytes(config, sizes, layout, studies)
    return {
        "rollout": (sampled, bytes_by_kind(sampled, state, fixed, sum(caches.values()))),
        "update": (updated, bytes_by_kind(updated, state, fixed)),
    }


def uses_cudnn(config: RunConfig, sizes: Qwen2VLConfig, layout: DeviceLayout) -> bool:
    """Whether rows of prompts and images go through its fused attention."""
    length, head_dim, dtype = prompt_tokens(config, sizes), sizes.language.head_dim, jnp.dtype(config.model.dtype)
    return attention_of(config.model.attention, length, head_dim, dtype, layout) == "cudnn"


def cache_bytes(config: RlConfig, sizes: Qwen2VLConfig, layout: DeviceLayout, studies: int) -> dict[str, int]:
    """Bytes of one device's keys and values in a rollout: a group has one copy of its prompt's."""
    language, shards = sizes.language, layout.mesh.shape
    split = shards["tensor"] if language.num_key_value_heads % shards["tensor"] == 0 else 1
    rollout = config.rollout
    places = rollout.max_new_tokens + (DRAFT_TOKENS if config.draft == "reports" else 0)
    tokens = {"prompts": prompt_tokens(config, sizes), "continuations": rollout.group * places}
    each = studies * bytes_of_token(config, language)
    return {name: count * each // (layout.row_shards * split) for name, count in tokens.items()}


def bytes_of_token(config: RlConfig, language: Qwen2Config) -> int:
    """Bytes of the keys and values of one token, in all layers."""
    width = jnp.dtype(config.model.dtype).itemsize
    return 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim * width


def time_bounds(
    config: RlConfig,
    sizes: Qwen2VLConfig,
    layout: DeviceLayout,
    studies: int,
    on: Slice,
    found: Mapping[str, Compiled] | None = None,
) -> dict[str, Any]:
    """Lower bounds on the seconds of a step whose reports all have full length, and the rollout's tokens a second.

    The step is a sequence of three stages, and in each compute, memory and links overlap. `found` are the compiled
    programs, by which what travels between nodes counts.
    """
    programs = {"prefill": found["rollout"], "update": found["update"]} if found else {}
    stages = {
        name: floor_of(work, on, programs.get(name)) for name, work in stages_of(config, sizes, layout, studies).items()
    }
    new, rows = config.rollout.max_new_tokens, studies * config.rollout.group
    prompt = prompt_tokens(config, sizes)
    passes = 4 if config.model.remat == "full" else 3
    seconds = {name: stage["seconds_at_least"] for name, stage in stages.items()}
    total = sum(seconds.values())
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{f"{name}_bound_by": stage["bound_by"] for name, stage in stages.items()},
        "seconds_at_least": total,
        "bound_by": stages[max(seconds, key=lambda name: seconds[name])]["bound_by"],
        "rollout_tokens_per_second_at_most": rows * new / (seconds["prefill"] + seconds["decode"]),
        "flops_of_attention_in_update": passes * attention_flops(sizes.language, rows * (new * prompt + new**2 / 2)),
    }


def stages_of(config: RlConfig, sizes: Qwen2VLConfig, layout: DeviceLayout, studies: int) -> dict[str, Work]:
    """What a device does in each stage of a step whose reports all have full length.

    Prefill: its FLOPs, the weights read once, and gathered over fsdp for the whole rollout. Decode: for each token the
    reading of the weights of the language model and of the cache, or its FLOPs. Update: forward and backward FLOPs,
    recomputation included, weights read in each pass, and the optimizer's state read and written; weights gathered
    twice for each micro-batch.
    """
    devices = layout.mesh.size
    language, new = sizes.language, config.rollout.max_new_tokens
    prompt, rows = prompt_tokens(config, sizes), studies * config.rollout.group
    vision = studies * config.data.views * vision_flops(sizes.vision, config.data.side)
    read = forward_flops(language, studies * prompt, studies * prompt**2 / 2)
    pairs = rows * (new * prompt + new**2 / 2)
    written = forward_flops(language, rows * new, pairs)

    tensor, fsdp = layout.mesh.shape["tensor"], layout.mesh.shape["fsdp"]
    shapes, passes = param_shapes(sizes), passes_of(config)
    trained = elements(study_trees(config, shapes)[0])
    weights = {part: size / tensor for part, size in part_bytes(config, shapes).items()}
    others = (fsdp - 1) / fsdp
    whole, gathered = sum(weights.values()), sum(passes[part].gathers * size for part, size in weights.items())
    stored = "" if config.model.tuning == "full" else config.model.param_dtype
    decoder = decoder_bytes(language, stored, config.model.dtype) / tensor
    cache = (studies * prompt + rows * new / 2) * bytes_of_token(config, language) / devices

    # Recomputed under remat are the layers, not the head.
    head = 2.0 * (studies * prompt + rows * new) * language.vocab_size * language.hidden_size
    scored = read + written - head
    update = passes["visual"].flops * vision + passes["language"].flops * scored
    update += (
        (3 if config.model.tuning == "full" else 2) * 2.0 * rows * new * language.vocab_size * language.hidden_size
    )
    accumulate = max(studies // (layout.row_shards * config.micro_batch), 1)
    adam = 2 * 3 * 4 * trained / devices  # parameters and both moments, in float32, read and written
    return {
        "prefill": Work((vision + read) / devices, whole, whole * others),
        "decode": Work(written / devices, new * (decoder + cache), 0.0),
        "update": Work(
            update / devices,
            accumulate * sum(passes[part].reads * size for part, size in weights.items()) + adam,
            accumulate * gathered * others,
        ),
    }


class Passes(NamedTuple):
    """How often an update goes through a part of the model."""

    flops: int  # times those of a forward pass; a gradient of inputs, one of weights and recomputation count one each
    reads: int  # of its weights
    gathers: int  # of its weights, where fsdp splits them


def passes_of(config: RunConfig) -> dict[str, Passes]:
    """By part. A frozen matrix has no gradient of its own; a frozen tower, whose inputs are images, none at all."""
    again, tuning = int(config.model.remat == "full"), config.model.tuning
    language = Passes((3 if tuning == "full" else 2) + again, 2 + again, 2)
    visual = Passes(1, 1, 1) if tuning == "lora" else Passes(3 + again, 2 + again, 2)
    return {"visual": visual, "language": language, "lora": language}


def step_of(preset: str, on: Slice, mesh: MeshConfig, micro_batch: int | None = None) -> Step:
    """A step of reinforcement learning on a mesh."""
    config = dataclasses.replace(RL_PRESETS[PLANNED[preset]], mesh=mesh)
    layout = make_device_layout("mesh", mesh, on.devices)
    config = dataclasses.replace(config, micro_batch=micro_batch_of(config, layout, micro_batch))
    sizes = as_computed(config, QWEN2_5_VL_3B)
    accumulate = max(config.batch_size // (layout.row_shards * config.micro_batch), 1)
    studies = layout.row_shards * config.micro_batch * accumulate
    shapes = param_shapes(sizes)
    trainable, frozen = study_trees(config, shapes)
    width = jnp.dtype(config.model.dtype).itemsize
    return Step(
        layout,
        Batch("studies", config.batch_size, studies, config.micro_batch, accumulate),
        stages_of(config, sizes, layout, studies),
        Exchanged(gathered=sum(part_bytes(config, shapes).values()), gradients=elements(trainable) * width),
        resident_bytes(trainable, frozen, config.optim, layout, SHARDING_RULES),
        lambda: compile_programs(config, sizes, layout, studies, accumulate),
    )


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
