"""`medreport plan --preset NAME --topology v5e:2x4`: whether the training step fits these devices, and what bounds it.

The actual step is compiled for a TPU slice (v5e:2x4) or for the GPUs of one node (h100:8), on a machine that has none
of them: shapes stand for all arrays, so nothing of the model's size is allocated. It fits if the sum of its buffers
does and the compiler accepts it. The command that writes reports with the preset's model is compiled, too. The bounds
on the time come from data sheets: no such step can be faster, and only a device can show how close it comes.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.bounds import NOT_NEGATIVE, bounded
from common.config_options import choose_preset
from common.errors import Parser, UserError
from common.generation.draft_sources import DRAFT_TOKENS
from common.generation.generate import bucket, qwen2_decoder
from common.generation.settings import DecodeSettings
from common.io.text import json_text
from common.models.decoding import Prompts
from common.models.quantized import stored_as
from common.models.qwen2 import SHARDING_RULES, Qwen2Config
from common.models.qwen2_weights import config_from_directory, param_shapes
from common.training.flops import forward_flops, matrix_parameters, peak_flops, train_flops
from common.training.optim import make_optimizer
from common.training.parallel import DeviceLayout, MeshConfig, batch_sharding, check_heads, make_device_layout
from common.training.sft import sft_loss
from common.training.step import init_state, make_train_step
from common.types import TextBatch
from launch import plan_deer, plan_deer_sft, plan_unicross
from launch.micro_batch_search import OUT_OF_TIME, SEARCH_SECONDS, Compiled, search_micro_batch, search_outcome
from launch.plan_options import CHANGING, OF_LANGUAGE, OF_TEXT, add_preset_options, changed, refuse
from launch.plan_shapes import adapter_shapes, frozen_shapes, layer_width, parameters_of
from launch.plan_slots import Writing, cache_bytes_of, plan_writing
from launch.plan_table import TOPOLOGIES, Planned, heads_of, named, rows_of
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
from launch.steps import Batch, Exchanged, Step, Work, activation_bytes, floor_of, micro_batch_of, resident_bytes
from launch.table_text import print_table
from retsta_jax.config import EMBEDDED_BASE, PRESETS, RetstaConfig

BATCH = 32  # slots of each device in `retsta standardize`
WRITERS = {
    **dict.fromkeys(plan_unicross.PLANNED, lambda options: plan_unicross.reporting(options.preset)),
    **dict.fromkeys(plan_deer.PLANNED, lambda options: plan_deer.sampling(options.preset, options.param_dtype)),
}  # the command that writes reports, by preset


def main(arguments: Sequence[str]) -> int:
    """Print the plan as one JSON object. Raises UserError for an unknown preset or topology, or without a compiler."""
    parser = Parser("medreport plan", description=__doc__)
    studies: dict[str, Any] = {name: module for module in (plan_deer, plan_deer_sft) for name in module.PLANNED}
    others: dict[str, Any] = dict.fromkeys(plan_unicross.PLANNED, plan_unicross) | studies
    names = [*PRESETS, *others]
    parser.add_argument("--preset", required=True, help="one of " + ", ".join(names))
    parser.add_argument(
        "--topology", required=True, help="v5e:2x4, v6e:16x16, v5p:2x2x1, h100:8, h100:4x8 (four nodes), rtx4090:1, ..."
    )
    parser.add_argument(
        "--programs",
        type=Path,
        metavar="FILE.jsonl",
        help="print a table of all presets and topologies named (with commas, or all), each on its best mesh; the file "
        "keeps what compilers said, so that the command continues where it was interrupted",
    )
    parser.add_argument("--format", choices=("markdown", "jsonl"), help="of the table (markdown)")
    add_preset_options(parser)
    parser.add_argument(
        "--search-seconds",
        type=bounded(NOT_NEGATIVE, float),
        default=SEARCH_SECONDS,
        help="processor time to search (%(default)s)",
    )
    options = parser.parse_args(list(arguments))
    jax.config.update("jax_platforms", "cpu")
    if options.programs is not None:
        if given := [name for name in CHANGING if getattr(options, name)]:
            raise UserError(f"--programs: a table has the presets as they are; leave out {', '.join(given)}")
        planned = {name: TABLE[name] for name in named(options.preset, list(TABLE), "--preset")}
        topologies = named(options.topology, TOPOLOGIES, "--topology")
        print_table(rows_of(planned, topologies, options.programs), options.format or "markdown")
        return 0
    if options.format:
        raise UserError("--format: it is for a table; give --programs FILE.jsonl, too")
    if options.preset in others:
        if options.preset in studies:
            refuse(options, OF_TEXT, "text models")
            config = changed(studies[options.preset].config_of(options.preset), options)
            found = studies[options.preset].plan_step(config, plan_deer.QWEN2_5_VL_3B, options.topology)
        else:
            refuse(options, (*OF_LANGUAGE, *OF_TEXT), "language models")
            found = plan_unicross.make_plan(options.preset, options.topology, options.micro_batch, options.loss_chunk)
        if writer := WRITERS.get(options.preset):
            on = open_slice(options.topology)
            found["writing"] = plan_writing(writer(options), on)
        print(json_text({"preset": options.preset, **found}, "plan", indent=2))
        return 0
    config = choose_preset(PRESETS | dict.fromkeys(others, RetstaConfig()), options.preset)
    config = dataclasses.replace(changed(config, options), max_length=options.sequence or config.max_length)
    if config.max_length < 1 or config.micro_batch < 1:
        raise UserError(f"--sequence {config.max_length} --micro-batch {config.micro_batch}: expected positive numbers")
    search_seconds = options.search_seconds if options.micro_batch is None else None
    sizes, on = base_sizes(config), open_slice(options.topology)
    plan = make_plan(config, sizes, options.topology, on, search_seconds)
    if plan.get("search") == OUT_OF_TIME:
        print(f"the search ran out of time: {search_outcome(plan)}", file=sys.stderr, flush=True)
    plan["writing"] = plan_standardizing(config, sizes, on)
    print(json_text({"preset": options.preset, **plan}, "plan", indent=2))
    return 0


def plan_standardizing(config: RetstaConfig, sizes: Qwen2Config, on: Slice) -> dict[str, Any]:
    """`retsta standardize` with prompts as long as the rows of training, and `buckets`: the caches of shorter ones."""
    longest = bucket(config.max_length)
    lengths = sorted({bucket(length) for length in range(1, longest + 1)})
    caches = {str(length): cache_bytes_of(standardizing(config, sizes, length), on) for length in lengths}
    return plan_writing(standardizing(config, sizes, longest), on) | {"buckets": caches}


def standardizing(config: RetstaConfig, sizes: Qwen2Config, length: int) -> Writing:
    """`retsta standardize` for prompts of `length` tokens; drafts come from texts as long and training targets."""
    trained = config.model.tuning == "full"
    sizes = dataclasses.replace(
        sizes, dtype=config.model.dtype, param_dtype="float32" if trained else stored_as(config.model.param_dtype)[0]
    )
    settings = DecodeSettings(
        config.max_new_tokens, stop_ids=(0,), forbidden_ids=(sizes.vocab_size - 1,), drafts=DRAFT_TOKENS
    )
    params = param_shapes(sizes)
    adapters = {} if trained else {"lora": adapter_shapes(config, params)}
    params = params if trained else frozen_shapes(config, params)
    prompt: Any = jax.ShapeDtypeStruct((length,), jnp.int32), jax.ShapeDtypeStruct((length,), bool)
    return Writing(
        "retsta standardize",
        qwen2_decoder(sizes),
        settings,
        BATCH,
        {"params": params, **adapters},
        Prompts(*prompt),
        length,
        reference=length,
        table=True,
        language=sizes,
        stored="" if trained else config.model.param_dtype,
    )


def base_sizes(config: RetstaConfig) -> Qwen2Config:
    """Sizes of the preset's base model; those of Qwen2.5-7B where the preset leaves it to the user."""
    if config.model.base == "embedded":
        return config_from_directory(EMBEDDED_BASE)
    return config_from_directory(config.model.base) if config.model.base else Qwen2Config()


def make_plan(
    config: RetstaConfig, sizes: Qwen2Config, topology: str, on: Slice, search_seconds: float | None
) -> dict[str, Any]:
    """Compile the step of `config` for the devices of `on`, and search the largest micro-batch, for `search_seconds`.

    There is no search where they are None. `largest_micro_batch` is None where the search ran out of time;
    `largest_that_fits` is then the largest tried.
    """
    started = time.perf_counter()
    layout = make_device_layout("mesh", config.mesh, on.devices)
    check_heads(sizes.num_key_value_heads, layout)
    sizes = as_computed(config, sizes, layout)

    limit = int(on.chip.usable * on.chip.memory)
    kinds: dict[int, dict[str, int]] = {}

    def attempt(micro_batch: int) -> Compiled:
        one, kinds[micro_batch] = compile_step_for(dataclasses.replace(config, micro_batch=micro_batch), sizes, layout)
        one = one._replace(fits=one.fits and one.total <= limit)
        answer = "fits" if one.fits else "does not fit"
        shown = f"micro-batch {micro_batch}: {answer}, {one.total / 1e9:.1f} of {limit / 1e9:.1f} GB"
        print(f"{shown}, compiled in {one.seconds:.0f} s", file=sys.stderr, flush=True)
        return one

    compiled = {config.micro_batch: attempt(config.micro_batch)}
    found = compiled[config.micro_batch]
    batch = batch_of(config, layout)
    plan = {
        "topology": topology,
        "device_kind": on.devices[0].device_kind,
        "devices": len(on.devices),
        "mesh": dict(layout.mesh.shape),
        "attention": sizes.attention,
        "remat": config.model.remat,
        "loss_chunk": config.model.loss_chunk,
        "batch": batch,
        "tokens_per_step": batch["rows"] * batch["sequence"],
        "flops_per_step": model_flops(config, sizes, layout),
        "fits": found.fits,
        "bytes_per_device": found.total,
        "argument_bytes": found.arguments,
        "temp_bytes": found.temporary,
        "received_bytes": found.received,
        "between_nodes_bytes": found.between,
        "bytes": kinds[config.micro_batch],
        "memory_bytes": on.chip.memory,
        "usable_bytes": limit,
        "bounds": time_bounds(config, sizes, layout, on, found),
    }
    if search_seconds is not None:
        complete = search_micro_batch(attempt, compiled, limit, search_seconds - found.processor_seconds)
        largest = max((micro for micro, one in compiled.items() if one.fits), default=0)
        plan["search"] = "complete" if complete else OUT_OF_TIME
        plan["largest_micro_batch"] = largest if complete else None
        plan["largest_that_fits"] = largest
        plan["smallest_refused"] = min((micro for micro, one in compiled.items() if not one.fits), default=None)
        plan["compiled"] = {
            str(micro): {"fits": one.fits, "bytes_per_device": one.total, "seconds": round(one.seconds, 1)}
            for micro, one in sorted(compiled.items())
        }
    plan["plan_seconds"] = round(time.perf_counter() - started, 1)
    return plan


def as_computed(config: RetstaConfig, sizes: Qwen2Config, layout: DeviceLayout) -> Qwen2Config:
    """The model as the preset computes with it on these devices."""
    head_dim, dtype = sizes.head_dim, jnp.dtype(config.model.dtype)
    return dataclasses.replace(
        sizes,
        dtype=config.model.dtype,
        param_dtype=stored_as(config.model.param_dtype)[0] if config.model.tuning == "lora" else "float32",
        attention=attention_of(config.model.attention, config.max_length, head_dim, dtype, layout),
        remat=config.model.remat,
    )


def batch_of(config: RetstaConfig, layout: DeviceLayout) -> dict[str, int]:
    """How an update is cut up. A slice that takes more rows at a time than a preset's batch has makes it larger."""
    at_a_time = layout.row_shards * config.micro_batch
    accumulate = max(config.batch_size // at_a_time, 1)
    return {
        "rows": at_a_time * accumulate,
        "sequence": config.max_length,
        "micro_batch": config.micro_batch,
        "rows_at_a_time": at_a_time,
        "accumulate": accumulate,
    }


def compile_step_for(config: RetstaConfig, sizes: Qwen2Config, layout: DeviceLayout) -> tuple[Compiled, dict[str, int]]:
    """Compile the update of `config` for the devices of `layout`, from shapes alone; and its bytes by kind."""
    batch = batch_of(config, layout)
    _, trainable, frozen = parameters_of(config, sizes)
    tx = make_optimizer(config.optim, 1000)
    state = abstract(jax.eval_shape(lambda tree: init_state(tree, tx), trainable), layout, SHARDING_RULES)
    rows = batch_sharding(layout)
    shape = (batch["rows"], batch["sequence"])
    whole, real = (jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for dtype in (jnp.int32, jnp.float32))
    arrays: Any = (whole, whole, real, whole, whole)
    key = abstract(jax.eval_shape(lambda: jax.random.key(0)), layout, ())
    options: dict[str, Any] = {"lora": config.lora, "chunk": config.model.loss_chunk, "packed": config.packing}
    loss = functools.partial(sft_loss, config=sizes, **options)
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(make_train_step(loss, tx, batch["accumulate"]), donate_argnums=0, out_shardings=(kept, None))
    fixed = abstract(frozen, layout, SHARDING_RULES)
    found, _ = compile_abstract(step, (state, fixed, TextBatch(*arrays), key), layout)
    if sizes.attention == "cudnn":
        found = with_workspace(found, config.micro_batch * config.max_length)
    return found, bytes_by_kind(found, state, fixed)


def model_flops(config: RetstaConfig, sizes: Qwen2Config, layout: DeviceLayout) -> float:
    """Model FLOPs of an update whose rows are full, each of one segment."""
    batch = batch_of(config, layout)
    pairs = batch["rows"] * batch["sequence"] ** 2 / 2
    lora = config.lora if config.model.tuning == "lora" else None
    return train_flops(sizes, lora, batch["rows"] * batch["sequence"], pairs)


def work_of(config: RetstaConfig, sizes: Qwen2Config, layout: DeviceLayout) -> Work:
    """What a device does for an update, by arithmetic.

    FLOPs include what remat recomputes. Memory counts reads of weights only: of a layer three times, of the head twice
    for each chunk of the loss. Links count the gathering of layers split by fsdp, in the forward and in the backward
    pass, and of the head once.
    """
    batch = batch_of(config, layout)
    rows, length, accumulate = batch["rows"], batch["sequence"], batch["accumulate"]
    tensor, fsdp = layout.mesh.shape["tensor"], layout.mesh.shape["fsdp"]
    width, own = jnp.dtype(sizes.param_dtype).itemsize / tensor, layer_width(config, sizes) / tensor
    head = sizes.vocab_size * sizes.hidden_size
    layers = matrix_parameters(sizes) - head

    executed = model_flops(config, sizes, layout)
    if config.model.remat == "full":
        executed += forward_flops(sizes, rows * length, rows * length**2 / 2) - 2.0 * rows * length * head
    chunks = int(np.ceil(length / config.model.loss_chunk))
    passes = 3 if config.model.remat == "full" else 2
    return Work(
        executed / layout.mesh.size,
        accumulate * (own * passes * layers + width * 2 * chunks * head),
        accumulate * (own * 2 * layers + width * head) * (fsdp - 1) / fsdp,
    )


def time_bounds(
    config: RetstaConfig, sizes: Qwen2Config, layout: DeviceLayout, on: Slice, found: Compiled
) -> dict[str, Any]:
    """Lower bounds on the seconds of an update, as if everything overlapped, and which of them is the highest."""
    batch, peak = batch_of(config, layout), peak_flops(on.devices[0])
    model = model_flops(config, sizes, layout)
    floor = floor_of(work_of(config, sizes, layout), on, found)
    seconds = floor["seconds_at_least"]
    return {
        **floor,
        "tokens_per_second_at_most": batch["rows"] * batch["sequence"] / seconds,
        "utilisation_at_most": model / (seconds * peak * layout.mesh.size) if peak else None,
    }


def step_of(preset: str, on: Slice, mesh: MeshConfig, micro_batch: int | None = None) -> Step:
    """The step of a text preset on a mesh."""
    config = dataclasses.replace(PRESETS[preset], mesh=mesh)
    layout = make_device_layout("mesh", mesh, on.devices)
    config = dataclasses.replace(config, micro_batch=micro_batch_of(config, layout, micro_batch))
    sizes = as_computed(config, base_sizes(config), layout)
    base, trainable, frozen = parameters_of(config, sizes)
    batch, tokens = batch_of(config, layout), config.micro_batch * config.max_length
    exchanged = Exchanged(
        gathered=elements(base) * jnp.dtype(sizes.param_dtype).itemsize,
        gradients=elements(trainable) * jnp.dtype(config.model.dtype).itemsize,
        activations=activation_bytes(sizes, tokens, config.model.remat),
    )
    return Step(
        layout,
        Batch("rows", config.batch_size, batch["rows"], config.micro_batch, batch["accumulate"]),
        {"update": work_of(config, sizes, layout)},
        exchanged,
        resident_bytes(trainable, frozen, config.optim, layout, SHARDING_RULES),
        lambda: {"update": compile_step_for(config, sizes, layout)},
    )


# Of presets with the same step there is one.
TABLE = {
    "openi": Planned(step_of),
    "retsta-7b": Planned(step_of, heads_of(Qwen2Config())),
    "iu-xray": Planned(plan_unicross.step_of, splits=False),
    "mimic-cxr": Planned(plan_unicross.step_of, splits=False),
    "deer-sft-mimic": Planned(plan_deer_sft.step_of),
    "deer-mimic": Planned(plan_deer.step_of),
}
