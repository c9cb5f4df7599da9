"""`medreport plan` for DEER's first stage: the supervised step of the image tower, compiled for devices not there."""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from common.models.qwen2_vl import SHARDING_RULES, Qwen2VLConfig, StudyRows
from common.models.qwen2_vl_layout import vision_layout
from common.models.qwen2_vl_weights import param_shapes
from common.training.flops import forward_flops
from common.training.optim import make_optimizer
from common.training.parallel import DeviceLayout, MeshConfig, batch_sharding, check_heads, make_device_layout
from common.training.step import init_state, make_train_step
from common.types import PyTree
from deer_jax.config import SFT_PRESETS, SftConfig
from deer_jax.prompts import ReportRows, StudyPrompts
from deer_jax.vision_policy import sft_loss
from launch.micro_batch_search import Compiled
from launch.plan_deer import (
    QWEN2_5_VL_3B,
    as_computed,
    passes_of,
    patches_of,
    prompt_tokens,
    uses_cudnn,
    vision_flops,
)
from launch.plan_shapes import part_bytes, study_trees
from launch.slices import (
    Slice,
    abstract,
    bytes_by_kind,
    compile_abstract,
    device_bytes,
    elements,
    open_slice,
    with_workspace,
)
from launch.steps import Batch, Exchanged, Programs, Step, Work, activation_bytes, floor_of, micro_batch_of

PLANNED = {"deer-sft-mimic": "mimic-cxr", "deer-sft-chexpert-plus": "chexpert-plus"}


def config_of(preset: str) -> SftConfig:
    """The config of a preset."""
    return SFT_PRESETS[PLANNED[preset]]


def plan_step(config: SftConfig, model: Qwen2VLConfig, topology: str) -> dict[str, Any]:
    """Compile the step for the devices of `topology`."""
    started = time.perf_counter()
    on = open_slice(topology)
    layout = make_device_layout("mesh", config.mesh, on.devices)
    check_heads(model.language.num_key_value_heads, layout)
    step = step_for(config, model, layout)
    found, kinds = step.compile()["update"]
    return {
        "topology": topology,
        "device_kind": on.devices[0].device_kind,
        "devices": len(on.devices),
        "mesh": dict(layout.mesh.shape),
        "batch": {
            "studies": step.batch.size, "micro_batch": config.micro_batch, "accumulate": step.batch.accumulate,
            "prompt": prompt_tokens(config, model), "report": config.max_length,
        },
        "fits": found.fits and found.total <= on.chip.usable * on.chip.memory,
        "bytes_per_device": found.total,
        "argument_bytes": found.arguments,
        "temp_bytes": found.temporary,
        "received_bytes": found.received,
        "between_nodes_bytes": found.between,
        "bytes": kinds,
        "memory_bytes": on.chip.memory,
        "usable_bytes": int(on.chip.usable * on.chip.memory),
        "bounds": floor_of(step.stages["update"], on, found),
        "compile_seconds": round(found.seconds, 1),
        "plan_seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def step_of(preset: str, on: Slice, mesh: MeshConfig, micro_batch: int | None = None) -> Step:
    """The supervised step on a mesh."""
    config = dataclasses.replace(SFT_PRESETS[PLANNED[preset]], mesh=mesh)
    layout = make_device_layout("mesh", mesh, on.devices)
    config = dataclasses.replace(config, micro_batch=micro_batch_of(config, layout, micro_batch))
    return step_for(config, QWEN2_5_VL_3B, layout)


def step_for(config: SftConfig, model: Qwen2VLConfig, layout: DeviceLayout) -> Step:
    """`step_of` for any config and sizes.

    Work counts FLOPs, with recomputation, reads of the weights in each pass and of the optimizer's state, and the
    gathering over fsdp of all weights in the forward and in the backward pass.
    """
    sizes = as_computed(config, model)
    at_a_time = layout.row_shards * config.micro_batch
    accumulate = max(config.batch_size // at_a_time, 1)
    studies, prompt = at_a_time * accumulate, prompt_tokens(config, sizes)
    length = prompt + config.max_length
    trainable, frozen = study_trees(config, param_shapes(sizes))
    tx = make_optimizer(config.optim, 1000)
    state = abstract(jax.eval_shape(lambda tree: init_state(tree, tx), trainable), layout, SHARDING_RULES)
    fixed = abstract(frozen, layout, SHARDING_RULES)

    def compile_update() -> Programs:
        found = compile_for(config, sizes, layout, studies, accumulate, state, fixed)
        return {"update": (found, bytes_by_kind(found, state, fixed))}

    vision = studies * config.data.views * vision_flops(sizes.vision, config.data.side)
    read = forward_flops(sizes.language, studies * length, studies * length**2 / 2)
    passes, shape = passes_of(config), layout.mesh.shape
    flops = passes["visual"].flops * vision + passes["language"].flops * read
    weights = part_bytes(config, param_shapes(sizes))
    reads, gathers = (
        accumulate * sum(passes[part][count] * size for part, size in weights.items()) / shape["tensor"]
        for count in (1, 2)
    )
    work = Work(
        flops / layout.mesh.size,
        reads + 2 * device_bytes(state),
        gathers * (shape["fsdp"] - 1) / shape["fsdp"],
    )
    return Step(
        layout,
        Batch("studies", config.batch_size, studies, config.micro_batch, accumulate),
        {"update": work},
        Exchanged(
            gathered=sum(weights.values()),
            gradients=elements(trainable) * jnp.dtype(config.model.dtype).itemsize,
            activations=activation_bytes(sizes.language, config.micro_batch * length, config.model.remat),
        ),
        device_bytes((state, fixed)),
        compile_update,
    )


def compile_for(
    config: SftConfig,
    sizes: Qwen2VLConfig,
    layout: DeviceLayout,
    studies: int,
    accumulate: int,
    state: PyTree,
    fixed: PyTree,
) -> Compiled:
    """What the compiler says of an update of `studies`."""
    length = prompt_tokens(config, sizes) + config.max_length

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((studies, *shape), dtype, sharding=batch_sharding(layout))

    whole = array(jnp.int32, length)
    rows = StudyRows(whole, array(jnp.bool_, length), array(jnp.int32, 3, length), whole, array(jnp.int32))
    prompts = StudyPrompts(rows, array(jnp.uint8, config.data.views, config.data.side, config.data.side))
    batch = ReportRows(prompts, whole, array(jnp.float32, length))
    key = abstract(jax.eval_shape(lambda: jax.random.key(0)), layout, ())
    images = vision_layout(sizes.vision, patches_of(config, sizes))
    loss = functools.partial(sft_loss, config=sizes, layout=images, lora=config.lora, chunk=config.model.loss_chunk)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    update = make_train_step(loss, make_optimizer(config.optim, 1000), accumulate)
    step = jax.jit(update, donate_argnums=0, out_shardings=(kept, None))
    found, _ = compile_abstract(step, (state, fixed, batch, key), layout)
    if uses_cudnn(config, sizes, layout):
        patches = config.data.views * math.prod(patches_of(config, sizes))
        found = with_workspace(found, config.micro_batch * (length + patches))
    return found
