"""`medreport plan` for UniCrossAdapter: the true training step of a preset, compiled for a TPU slice or a node of GPUs.

All of it is float32, so on GPUs no part of it is cuDNN's attention.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.generation.draft_sources import DRAFT_TOKENS
from common.generation.settings import DecodeSettings
from common.models.clip import RN101
from common.models.clip_weights import param_shapes
from common.training.optim import make_optimizer
from common.training.parallel import DeviceLayout, MeshConfig, batch_sharding, make_device_layout
from common.training.step import init_state, make_train_step
from common.training.traced_flops import traced_flops
from common.types import PyTree
from launch.micro_batch_search import Compiled
from launch.plan_slots import Writing
from launch.slices import Slice, abstract, bytes_by_kind, compile_abstract, device_bytes, elements, open_slice
from launch.steps import Batch, Exchanged, Programs, Step, Work, floor_of
from unicross_jax.adapters import AdapterConfig
from unicross_jax.backbone import without_dropout
from unicross_jax.config import PRESETS, RunConfig
from unicross_jax.data import CONDITION_TOKENS
from unicross_jax.generate import report_decoder
from unicross_jax.model import ReportBatch, Studies, UniCrossConfig, init_trainable, loss

PLANNED = ("iu-xray", "mimic-cxr")  # presets with CLIP RN101
BATCH = 32  # slots of each device in `unicross report` and `unicross evaluate`
START, END = 1, 2  # token ids
WORDS = 4348  # tokens of the merged vocabulary of both corpora in the authors' code, about


class Shapes(NamedTuple):
    """The update, its arguments as shapes on devices, and how the batch is cut up."""

    update: Callable[..., Any]
    arguments: tuple[Any, Any, ReportBatch, Any]  # state, frozen, batch, key
    batch: Batch


def make_plan(preset: str, topology: str, micro_batch: int | None, loss_chunk: int | None) -> dict[str, Any]:
    """Compile the step for the slice; a device takes its share of the preset's batch, or `micro_batch` studies."""
    started = time.perf_counter()
    config = PRESETS[preset]
    on = open_slice(topology)
    layout = make_device_layout("mesh", config.mesh, on.devices)
    shapes = shapes_of(config, layout, micro_batch, loss_chunk)
    state, frozen, *_ = shapes.arguments
    work = work_of(shapes, layout, traced(shapes, layout) / layout.mesh.size)
    found = compile_update(shapes, layout)
    return {
        "topology": topology,
        "device_kind": on.devices[0].device_kind,
        "devices": len(on.devices),
        "mesh": dict(layout.mesh.shape),
        "batch": {
            "studies": shapes.batch.size, "micro_batch": shapes.batch.micro_batch,
            "accumulate": shapes.batch.accumulate, "views": config.data.views,
        },
        "trainable_parameters": elements(state.trainable),
        "frozen_parameters": elements(frozen),
        "fits": found.fits and found.total <= on.chip.usable * on.chip.memory,
        "bytes_per_device": found.total,
        "argument_bytes": found.arguments,
        "temp_bytes": found.temporary,
        "received_bytes": found.received,
        "between_nodes_bytes": found.between,
        "bytes": bytes_by_kind(found, state, frozen),
        "memory_bytes": on.chip.memory,
        "usable_bytes": int(on.chip.usable * on.chip.memory),
        "flops_per_device": work.flops,
        "bounds": floor_of(work, on, found),
        "compile_seconds": round(found.seconds, 1),
        "plan_seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def step_of(preset: str, on: Slice, mesh: MeshConfig, micro_batch: int | None = None) -> Step:
    """The step on a mesh, of which only the axis data is of use: weights are never split."""
    config = PRESETS[preset]
    layout = make_device_layout("mesh", mesh, on.devices)
    shapes = shapes_of(config, layout, micro_batch, None)
    state, frozen, *_ = shapes.arguments

    def compiled() -> Programs:
        found = compile_update(shapes, layout)
        return {"update": (found, bytes_by_kind(found, state, frozen))}

    flops = flops_of_study(preset) * shapes.batch.size / layout.mesh.size
    return Step(
        layout,
        shapes.batch,
        {"update": work_of(shapes, layout, flops)},
        Exchanged(gathered=0.0, gradients=device_bytes(state.trainable)),
        device_bytes((state, frozen)),
        compiled,
    )


@functools.cache
def flops_of_study(preset: str) -> float:
    """FLOPs of an update for each of its studies, by a trace, which takes half a minute."""
    layout = make_device_layout("mesh", MeshConfig(1, 1, 1), jax.devices("cpu")[:1])
    shapes = shapes_of(PRESETS[preset], layout, 1, None)
    return traced(shapes, layout) / shapes.batch.size


def shapes_of(config: RunConfig, layout: DeviceLayout, micro_batch: int | None, loss_chunk: int | None) -> Shapes:
    """The step of a preset; a device takes its share of the batch, or `micro_batch` studies."""
    model = model_of(config)
    rows_of_device = micro_batch or max(config.batch_size // layout.row_shards, 1)
    accumulate = max(config.batch_size // (layout.row_shards * rows_of_device), 1)
    rows = layout.row_shards * rows_of_device * accumulate
    tx = make_optimizer(config.optim, 1000)
    key = jax.eval_shape(lambda: jax.random.key(0))
    trainable = jax.eval_shape(functools.partial(init_trainable, model), key)
    state = abstract(jax.eval_shape(lambda tree: init_state(tree, tx), trainable), layout, ())
    frozen = abstract(frozen_shapes(model), layout, ())
    batch = report_batch_shapes(rows, config.data.views, RN101.image_size, config.max_length - 1, layout)
    train_loss = functools.partial(loss, config=model, chunk=loss_chunk or config.loss_chunk)
    return Shapes(
        make_train_step(train_loss, tx, accumulate),
        (state, frozen, batch, abstract(key, layout, ())),
        Batch("studies", config.batch_size, rows, rows_of_device, accumulate),
    )


def traced(shapes: Shapes, layout: DeviceLayout) -> float:
    """FLOPs of an update on all devices, by a trace."""
    with layout.context():
        return traced_flops(shapes.update, *shapes.arguments)


def work_of(shapes: Shapes, layout: DeviceLayout, flops: float) -> Work:
    """Weights are read in a forward and a backward pass, the state is read and written; gradients are summed."""
    state, frozen, *_ = shapes.arguments
    weights, trained = device_bytes((state.trainable, frozen)), device_bytes(state.trainable)
    reads = 2 * shapes.batch.accumulate * weights + 2 * device_bytes(state)
    return Work(flops, reads, 2 * trained * (layout.row_shards - 1) / layout.row_shards)


def compile_update(shapes: Shapes, layout: DeviceLayout) -> Compiled:
    """What the compiler says of the step."""
    kept = jax.tree.map(lambda leaf: leaf.sharding, shapes.arguments[0])
    step = jax.jit(shapes.update, donate_argnums=0, out_shardings=(kept, None))
    return compile_abstract(step, shapes.arguments, layout)[0]


def model_of(config: RunConfig) -> UniCrossConfig:
    """The model of a preset."""
    return UniCrossConfig(
        clip=RN101,
        vocabulary=WORDS,
        conditioning=config.model.conditioning,
        heads=config.model.heads,
        vision_layers=config.model.vision_layers,
        decoder_layers=config.model.decoder_layers,
        dropout=config.model.dropout,
        adapters=AdapterConfig(dropout=config.model.adapter_dropout),
    )


def frozen_shapes(model: UniCrossConfig) -> PyTree:
    """What is not trained."""
    embedding = jax.ShapeDtypeStruct((model.vocabulary, model.width), jnp.float32)
    return {"clip": param_shapes(model.clip), "report_embedding": embedding}


def reporting(preset: str) -> Writing:
    """`unicross report` and `unicross evaluate` with the preset's settings; beams take no drafts."""
    return reporting_of(PRESETS[preset], model_of(PRESETS[preset]))


def reporting_of(config: RunConfig, model: UniCrossConfig) -> Writing:
    """`reporting` for any config and sizes."""
    drafted = config.beams == 1
    settings = DecodeSettings(
        config.max_length - 1,
        beams=config.beams,
        length_penalty=config.length_penalty,
        stop_ids=(END,),
        drafts=DRAFT_TOKENS if drafted else 0,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    trainable = jax.eval_shape(functools.partial(init_trainable, model), key)
    rows = report_batch_shapes(1, config.data.views, model.clip.image_size, 1, None).studies
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
    return Writing(
        "unicross report",
        report_decoder(without_dropout(model), START),
        settings,
        BATCH,
        (trainable, frozen_shapes(model)),
        one,
        1,
        table=drafted,
    )


def report_batch_shapes(rows: int, views: int, side: int, length: int, layout: Any) -> ReportBatch:
    """A batch as shapes, split by rows over the devices of `layout`, if any."""
    sharding = None if layout is None else batch_sharding(layout)

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

    studies = Studies(
        array(jnp.uint8, views, side, side),
        array(jnp.bool_, views),
        array(jnp.int32, CONDITION_TOKENS),
        array(jnp.int32),
    )
    tokens = array(jnp.int32, length)
    return ReportBatch(studies, tokens, tokens, array(jnp.float32, length))
