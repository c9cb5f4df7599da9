"""Many prompts through a few slots: a slot whose continuations have ended is given the next prompt of a queue.

So throughput follows the mean length of what is written, not the longest of each batch. Two jitted programs hold S
slots on each device: one reads R prompts into free slots, one adds tokens until R slots have ended. The host looks at
what has ended in between. Devices that hold whole weights run independently, each over its own slots; devices over
which a mesh splits the weights work in step. Several processes that work in step fill all slots at the same time, since
none of them knows which slots of the others are free.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from common.generation.beams import Search, begin_search, finish_search
from common.generation.draft_length import FIRST_CHANCE, best_draft_length, draft_lengths, updated_chance
from common.generation.drafts import NO_DRAFTS, Drafts, Table
from common.generation.loop import Decoding, Generated, begin, finish
from common.generation.settings import DecodeSettings
from common.generation.slot_state import put, put_in_parts
from common.models.attention_choice import Use, announce_attention
from common.models.cpu_ops import on_cpu
from common.models.decoding import Decoder
from common.training.parallel import (
    DeviceLayout,
    batch_sharding,
    device_put_tree,
    fetch_rows,
    place_batch,
    processes,
)
from common.types import PyTree

REFILL = 8  # one slot in so many is refilled at a time
FREE = -1  # in place of the request that occupies a slot

Found = TypeVar("Found")


class Request(NamedTuple):
    """A prompt in the queue, or several with a leading axis."""

    row: Any  # a number that its random key is made of
    prompt: PyTree  # numpy leaves, of one shape in a queue
    reference: Any = None  # [R], texts to draft from (`Drafts`)


def decode(
    decoder: Decoder,
    weights: PyTree,
    prompts: PyTree,
    keys: Key[Array, " B"],
    settings: DecodeSettings,
    drafts: Drafts = NO_DRAFTS,
) -> Generated:
    """All prompts at once, as a pure function: G = group samples of each, or the best beam where beams > 1."""
    weights = _gathered(decoder, weights)
    prepared = _prepared(decoder, weights)
    start = _begin(decoder, weights, prepared, prompts, keys, drafts.reference, settings)
    return _finish(decoder, prepared, start, settings, drafts.table).generated


def _gathered(decoder: Decoder, weights: PyTree) -> PyTree:
    return weights if decoder.gather is None else decoder.gather(weights)


def _prepared(decoder: Decoder, gathered: PyTree) -> PyTree:
    return gathered if decoder.prepare is None else decoder.prepare(gathered)


def _begin(decoder, gathered, prepared, prompts, keys, reference, settings) -> Decoding | Search:
    prefilled = decoder.read(gathered, prompts)
    if settings.beams > 1:
        return begin_search(prefilled, settings)
    return begin(decoder.head(prepared), prefilled, keys, settings, reference)


def _finish(decoder, prepared, state, settings, table=None, enough=None, count=None) -> Decoding | Search:
    if settings.beams > 1:
        return finish_search(decoder.bind(prepared), decoder.head(prepared), state, settings, enough)
    return finish(decoder.bind(prepared), decoder.head(prepared), state, settings, table, enough, count)


class Programs(NamedTuple):
    """What slots do, as pure functions of a state of S slots."""

    start: Callable[..., Any]  # (weights, seed, batch) -> state with a slot for each of the batch
    empty: Callable[..., Any]  # the same -> state with all slots idle
    admit: Callable[..., Any]  # (weights, seed, batch, state, slots) -> state
    prepare: Callable[[PyTree], PyTree]  # weights -> weights as `advance` reads them
    # (prepared, state, table, enough, number of drafts) -> state, which prompts are done, Generated; the number is a
    # part of the program, by default the most
    advance: Callable[..., Any]


class Slots(NamedTuple):
    """The compiled programs of a model, with arguments and results as in `Programs`, and the layout they run on."""

    start: Callable[..., Any]
    empty: Callable[..., Any]
    admit: Callable[..., Any]
    prepare: Callable[[PyTree], PyTree]
    advance: Callable[..., Any]
    size: int  # slots of each device
    settings: DecodeSettings
    layout: DeviceLayout
    attention: Callable[[PyTree], Sequence[Use]]  # `Decoder.attention`


def slot_programs(decoder: Decoder, settings: DecodeSettings, size: int, parts: int = 1) -> Programs:
    """The programs of a device with `size` slots, or of a mesh that splits the slots into `parts` of that size."""

    def start(weights: PyTree, seed: Array, batch: Request) -> Any:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.wrap_key_data(seed), batch.row)
        gathered = _gathered(decoder, weights)
        prepared = _prepared(decoder, gathered)
        return _begin(decoder, gathered, prepared, batch.prompt, keys, batch.reference, settings)

    def empty(weights: PyTree, seed: Array, batch: Request) -> Any:
        each = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), batch)
        state = jax.eval_shape(start, weights, seed, each)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state).idle()

    def admit(weights: PyTree, seed: Array, batch: Request, state: Any, slots: Array) -> Any:
        new = start(weights, seed, batch)
        return put(state, new, slots) if parts == 1 else put_in_parts(state, new, slots, parts)

    def prepare(weights: PyTree) -> PyTree:
        return _prepared(decoder, _gathered(decoder, weights))

    def advance(prepared: PyTree, state: Any, table: Table | None, enough: Array, drafts: int | None = None) -> Any:
        state = _finish(decoder, prepared, state, settings, table, enough, drafts)
        return state, state.done, state.generated

    return Programs(start, empty, admit, prepare, advance)


def make_slots(decoder: Decoder, settings: DecodeSettings, size: int, layout: DeviceLayout) -> Slots:
    """The programs, which compile once for each shape of prompts. States are donated."""
    programs = slot_programs(decoder, settings, size, layout.row_shards if layout.mode == "mesh" else 1)

    def prepare(weights: PyTree) -> PyTree:
        with layout.context():
            # Where nothing is rearranged, a program would copy all weights.
            return prepared(weights) if on_cpu() and decoder.prepare else programs.prepare(weights)

    whole: Any = {} if layout.mode == "mesh" else {"out_shardings": NamedSharding(layout.mesh, PartitionSpec())}
    prepared = jax.jit(programs.prepare, **whole)
    if layout.mode == "pmap":
        devices: dict[str, Any] = {"devices": list(layout.mesh.devices.flat)}
        return Slots(
            jax.pmap(programs.start, in_axes=(None, None, 0), **devices),
            jax.pmap(programs.empty, in_axes=(None, None, 0), **devices),
            jax.pmap(programs.admit, in_axes=(None, None, 0, 0, 0), donate_argnums=3, **devices),
            prepare,
            jax.pmap(
                programs.advance,
                in_axes=(None, 0, None, 0, None),
                static_broadcasted_argnums=4,
                donate_argnums=1,
                **devices,
            ),
            size,
            settings,
            layout,
            decoder.attention,
        )

    def run(program: Callable[..., Any], *arguments: Any) -> Any:
        with layout.context():
            return program(*arguments)

    # States keep one sharding: otherwise `admit` would be compiled again for what `advance` returns.
    if layout.mode == "mesh":
        admit = _kept_in_place(lambda kept: jax.jit(programs.admit, donate_argnums=3, out_shardings=kept), 3)
        rest = (batch_sharding(layout),) * 2
        advance = _kept_in_place(
            lambda kept: jax.jit(programs.advance, static_argnums=4, donate_argnums=1, out_shardings=(kept, *rest)), 1
        )
    else:
        admit = jax.jit(programs.admit, donate_argnums=3, **whole)
        advance = jax.jit(programs.advance, static_argnums=4, donate_argnums=1, **whole)
    compiled = jax.jit(programs.start), jax.jit(programs.empty, **whole), admit, advance
    first, idle, refill, go_on = (functools.partial(run, program) for program in compiled)
    return Slots(first, idle, refill, prepare, go_on, size, settings, layout, decoder.attention)


def _kept_in_place(compile_for: Callable[[PyTree], Callable[..., Any]], state: int) -> Callable[..., Any]:
    """A program that returns its argument number `state` in the shardings that this argument had at the first call."""
    compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def run(*arguments: Any) -> Any:
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments[state]))
        if shapes not in compiled:
            compiled[shapes] = compile_for(jax.tree.map(lambda leaf: leaf.sharding, arguments[state]))
        return compiled[shapes](*arguments)

    return run


def run_slots(
    slots: Slots, weights: PyTree, queue: Iterable[Request], seed: int = 0, table: Table | None = None
) -> Iterator[tuple[int, Generated]]:
    """The place of each request in the queue with its continuations (numpy, [G T]), as they end.

    A row's random key is made of `seed` and its number, so that what is written for it depends on nothing beside it.
    With several processes, each has its own queue; where they work in step, all queues must have the same length.
    """
    layout, count, group = slots.layout, slots.size, slots.settings.group
    parts = layout.row_shards // processes(layout)
    split = layout.mode == "mesh"
    at_once = count if split and processes(layout) > 1 else max(count // REFILL, 1)
    source = enumerate(queue)
    waiting: collections.deque[tuple[int, Request]] = collections.deque()
    occupants = np.full((parts, count), FREE)
    prepared = slots.prepare(weights)
    table = None if table is None else device_put_tree(table, layout)
    root = np.asarray(jax.random.key_data(jax.random.key(seed)))
    state: Any = None
    lengths, chance = draft_lengths(slots.settings.drafts), FIRST_CHANCE
    chosen = np.zeros((parts * count, 2), int)  # tokens of each slot: those that were not drafts, and drafts

    def prepare(each: int) -> None:
        while len(waiting) < parts * each and (numbered := next(source, None)) is not None:
            waiting.append(numbered)

    prepare(count if split else at_once)
    if waiting:
        announce_attention(slots.attention(waiting[0][1].prompt))
    while waiting or (occupants != FREE).any():
        while waiting and (occupants == FREE).sum(axis=1).max() >= at_once:
            batch, places = _seated(waiting, occupants, count if split and state is None else at_once)
            chosen[_slot_numbers(places, parts, count)] = group, 0  # the first token of each continuation
            placed = place_batch(batch, layout)
            if split and (state is None or at_once == count):
                state = slots.start(weights, root, placed)
            else:
                state = slots.empty(weights, root, placed) if state is None else state
                state = slots.admit(weights, root, placed, state, place_batch(places, layout))
            prepare(at_once)
        free = (occupants == FREE).sum(axis=1)
        enough = np.minimum(free + at_once, count) if waiting else np.full(parts, count)
        total = np.int32(enough.sum() * processes(layout))  # where devices work in step
        wanted = enough.astype(np.int32) if layout.mode == "pmap" else total
        drafts = best_draft_length(chance, count * group, lengths)
        state, *ended = slots.advance(prepared, state, table, wanted, drafts)
        prepare(at_once)  # while the devices work
        done, generated = fetch_rows(ended, layout)
        new = _chosen_tokens(generated) - chosen
        chosen += new
        chance = updated_chance(chance, drafts, stood=new[:, 1].sum(), passes=new[:, 0].sum())
        ready = (occupants.ravel() != FREE) & done
        ended_places = occupants.ravel()[ready].tolist()
        occupants[ready.reshape(occupants.shape)] = FREE
        for place, index in zip(ended_places, np.flatnonzero(ready), strict=True):
            yield place, jax.tree.map(lambda leaf, index=index: leaf[index], generated)


def _slot_numbers(places: Int[np.ndarray, " N"], parts: int, count: int) -> Int[np.ndarray, " M"]:
    """Indices over the slots of all devices from `places`, R of each device, without those that do not exist."""
    of_part = places.reshape(parts, -1) + np.arange(parts)[:, None] * count
    return of_part[places.reshape(parts, -1) < count]


def _chosen_tokens(generated: Generated) -> Int[np.ndarray, "N 2"]:
    """The numbers of tokens of each slot that were not drafts, and that were."""
    drafted = np.asarray(generated.drafted).sum(axis=(1, 2))
    return np.stack([np.asarray(generated.lengths).sum(axis=1) - drafted, drafted], axis=1)


def in_order(found: Iterable[tuple[int, Found]]) -> Iterator[Found]:
    """What `run_slots` finds in the order of its queue, each as soon as those before it have ended."""
    waiting: dict[int, Found] = {}
    following = 0
    for place, generated in found:
        waiting[place] = generated
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _seated(
    waiting: collections.deque[tuple[int, Request]], occupants: Int[np.ndarray, "D S"], at_once: int
) -> tuple[Request, Int[np.ndarray, " N"]]:
    """The next requests for R free slots of each device, stacked by device, and these slots.

    `occupants` is changed. Where requests or slots run out, one comes again and is given no slot.
    """
    parts, count = occupants.shape
    places = np.full((parts, at_once), count)
    chosen = [[waiting[0][1]] * at_once for _ in range(parts)]
    for turn in range(at_once):
        for part in range(parts):
            free = np.flatnonzero(occupants[part] == FREE)
            if waiting and len(free):
                occupants[part, free[0]], chosen[part][turn] = waiting.popleft()
                places[part, turn] = free[0]
    every = [request for own in chosen for request in own]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *every), places.ravel()
