"""`medreport plan` for the commands that write reports: the programs of their slots, compiled for one device.

Such a command keeps whole weights on each device and runs the devices independently (`common.generation.slots`), so one
device represents all. Prompts have the greatest length that the preset allows, and every slot is occupied.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.generation.drafts import LONGEST, Table
from common.generation.ngrams import MOST_TOKENS, TABLE_TOKENS, places_of
from common.generation.settings import DecodeSettings
from common.generation.slots import REFILL, Programs, Request, slot_programs
from common.models.decoding import Decoder
from common.models.qwen2 import Qwen2Config
from common.training.flops import forward_flops, peak_flops
from common.training.parallel import DeviceLayout, MeshConfig, make_device_layout
from common.types import PyTree
from launch.chips import time_floor
from launch.micro_batch_search import Compiled
from launch.plan_shapes import decoder_bytes
from launch.slices import Slice, abstract, compile_abstract, device_bytes


class Writing(NamedTuple):
    """A command that writes reports, as one device runs it. Leaves of trees are shapes."""

    command: str
    decoder: Decoder
    settings: DecodeSettings
    slots: int
    weights: PyTree
    prompt: PyTree  # one
    length: int  # of it, in tokens
    reference: int = 0  # tokens of the text of a prompt that drafts come from; 0: none
    table: bool = False  # whether drafts come from training reports
    language: Qwen2Config | None = None  # of which the decoder consists, for the floor of a pass
    stored: str = ""  # what its layers are stored in, where that is 8 or 4 bits


class Arguments(NamedTuple):
    """The programs and their arguments other than the state, on one device."""

    layout: DeviceLayout
    programs: Programs
    weights: PyTree
    seed: PyTree
    batch: Request  # the prompts that are read at a time
    slots: PyTree


def plan_writing(writing: Writing, on: Slice) -> dict[str, Any]:
    """Compile the two programs that run and add up their bytes. Prints the result on standard error, too.

    `caches` are the bytes of the keys and values of prompts and of continuations, and of encoded images.
    """
    args = arguments_of(writing, on)
    state = state_of(args)
    table = abstract(table_shapes(), args.layout, ()) if writing.table else None
    enough = abstract(jax.ShapeDtypeStruct((), jnp.int32), args.layout, ())

    def advance(weights: PyTree, *rest: Any) -> Any:
        return args.programs.advance(args.programs.prepare(weights), *rest)

    begun = args.weights, args.seed, args.batch
    found = {
        "admit": _compiled(args.programs.admit, (*begun, state, args.slots), args.layout, donated=3),
        "advance": _compiled(advance, (args.weights, state, table, enough), args.layout, donated=1),
    }
    caches = cache_bytes(state)
    drafts = device_bytes(table) + device_bytes(getattr(state, "reference", None))
    limit = int(on.chip.usable * on.chip.memory)
    most = max(one.total for one in found.values())
    fits = all(one.fits for one in found.values()) and most <= limit
    parameters, kept = device_bytes(args.weights), sum(caches.values())
    shown = f"{writing.command}: {writing.slots} slots: {'fits' if fits else 'does not fit'}, {most / 1e9:.1f} of "
    print(f"{shown}{limit / 1e9:.1f} GB, {kept / 1e9:.1f} of them caches", file=sys.stderr, flush=True)
    plan = {
        "command": writing.command,
        "slots": writing.slots,
        "read_at_a_time": args.slots.shape[0],
        "prompt": writing.length,
        "new_tokens": writing.settings.max_new_tokens,
        "continuations": max(writing.settings.group, writing.settings.beams),
        "drafts": writing.settings.drafts,
        "fits": fits,
        "bytes_per_device": most,
        "caches": caches,
        "programs": {
            name: _described(one, parameters, kept, drafts if name == "advance" else 0) for name, one in found.items()
        },
    }
    return plan if writing.language is None else plan | {"bounds": pass_bounds(writing, kept, on)}


def arguments_of(writing: Writing, on: Slice) -> Arguments:
    """The programs of a command for the first of some devices."""
    layout = make_device_layout("mesh", MeshConfig(1, 1, 1), on.devices[:1])
    at_once = max(writing.slots // REFILL, 1)

    def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((at_once, *shape), dtype)

    prompts = jax.tree.map(lambda leaf: rows(*leaf.shape, dtype=leaf.dtype), writing.prompt)
    batch = Request(rows(), prompts, rows(writing.reference) if writing.reference else None)
    seed = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    placed = (abstract(tree, layout, ()) for tree in (writing.weights, seed, batch, rows()))
    return Arguments(layout, slot_programs(writing.decoder, writing.settings, writing.slots), *placed)


def state_of(args: Arguments) -> PyTree:
    """The state of all slots."""
    with args.layout.context():
        made = jax.eval_shape(args.programs.empty, args.weights, args.seed, args.batch)
    return abstract(made, args.layout, ())


def _compiled(program: Callable[..., Any], arguments: Any, layout: DeviceLayout, donated: int) -> Compiled:
    """What the compiler reports. Weights that a program does not read are counted, since they are on the device."""
    return compile_abstract(jax.jit(program, donate_argnums=donated, keep_unused=True), arguments, layout)[0]


def _described(one: Compiled, parameters: int, caches: int, drafts: int) -> dict[str, Any]:
    """Bytes of a program in all and by kind."""
    return {
        "bytes_per_device": one.total,
        "argument_bytes": one.arguments,
        "temp_bytes": one.temporary,
        "bytes": {
            "parameters": parameters,
            "caches": caches,
            "drafts": drafts,
            "inputs": one.arguments - parameters - drafts - caches,
            "activations": one.temporary,
            "outputs": one.total - one.arguments - one.temporary,
        },
        "compile_seconds": round(one.seconds, 1),
    }


def cache_bytes(state: Any) -> dict[str, int]:
    """Bytes of one device's keys and values, and of what else a model keeps of a prompt, such as encoded images."""
    kept = {"prompts": state.prompts.keys_values, "context": state.prompts.context, "continuations": state.suffix}
    return {name: device_bytes(tree) for name, tree in kept.items()}


def cache_bytes_of(writing: Writing, on: Slice) -> int:
    """The sum of `cache_bytes`, without compiling."""
    return sum(cache_bytes(state_of(arguments_of(writing, on))).values())


def table_shapes() -> Table:
    """The largest possible table of drafts (`common.generation.ngrams`)."""
    places = places_of(LONGEST * MOST_TOKENS)
    arrays: Any = (
        jax.ShapeDtypeStruct((places,), jnp.uint32),
        jax.ShapeDtypeStruct((places, TABLE_TOKENS), jnp.int32),
    )
    return Table(*arrays)


def pass_bounds(writing: Writing, caches: int, on: Slice) -> dict[str, Any]:
    """Lower bound on the seconds of a pass over all slots, whose continuations have half their greatest length.

    It reads the weights of the language model and the caches once. `tokens_per_second_at_most` is the rate if all
    drafts stand.
    """
    language, settings = writing.language, writing.settings
    assert language is not None
    tokens = writing.slots * max(settings.group, settings.beams) * (settings.drafts + 1)
    pairs = tokens * (writing.length + settings.max_new_tokens / 2)
    weights = decoder_bytes(language, writing.stored, language.param_dtype)
    flops = forward_flops(language, tokens, pairs)
    floor = time_floor(on.chip, peak_flops(on.devices[0]), flops, weights + caches, 0.0)
    return floor | {"tokens_per_second_at_most": tokens / floor["seconds_at_least"]}
