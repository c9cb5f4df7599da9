"""Token lists in, token lists out: length buckets around the compiled programs of `common.generation.slots`.

A row's result depends on its prompt, its key and the settings, not on the rows beside it: its bucket is that of its
own length, and its random key is made of its own number.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from common.generation.drafts import NO_DRAFTS, START, Drafts, Table
from common.generation.loop import Generated, prefill
from common.generation.settings import DecodeSettings
from common.generation.slots import Request, Slots, decode, in_order, make_slots, run_slots
from common.models.decoding import Decoder, Prompts
from common.models.qwen2 import Qwen2, Qwen2Config, attention_uses, bind, for_decoding, output_head
from common.training.losses import token_logprobs
from common.training.parallel import DeviceLayout
from common.types import PyTree

SHORTEST_BUCKET = 64
PROGRAMS = 8  # that a process keeps
BATCHES_AT_ONCE = 16  # times the rows in all slots: what is sorted into buckets and written together


class Continuation(NamedTuple):
    """One continuation of one prompt; `token_ids` ends with the stop token where `stopped`.

    Where it is not `finite` the rest means nothing: it is an error to show it (`common.io.finite`).
    """

    token_ids: list[int]
    log_probs: list[float]
    stopped: bool
    finite: bool
    drafted: list[bool]  # tokens that were drafts


Scorer = Callable[[PyTree, Prompts, Prompts], Float[Array, "B T"]]


@functools.lru_cache(maxsize=PROGRAMS)
def qwen2_decoder(config: Qwen2Config) -> Decoder:
    """A Qwen2 for generation. Weights are {"params": ...}, with "lora" (scaled) beside it or not."""
    return Decoder(
        read=lambda weights, prompts: prefill(bind(config, weights), prompts),
        bind=functools.partial(bind, config),
        head=lambda weights: output_head(weights["params"]),
        prepare=for_decoding,
        attention=lambda prompt: attention_uses(config, prompt.mask.shape[-1]),
    )


@functools.lru_cache(maxsize=PROGRAMS)
def qwen2_slots(config: Qwen2Config, settings: DecodeSettings, count: int, layout: DeviceLayout) -> Slots:
    """The programs of a Qwen2 (`make_slots`); asked for again they are the same, which compile once for each bucket."""
    return make_slots(qwen2_decoder(config), settings, count, layout)


@functools.lru_cache(maxsize=PROGRAMS)
def make_generator(config: Qwen2Config, settings: DecodeSettings) -> Callable[..., Generated]:
    """The jitted program `(weights, prompts, keys, drafts) -> Generated` for all prompts at once.

    G = group or 1; the best beam where beams > 1.
    """

    @jax.jit
    def run(weights: PyTree, prompts: Prompts, keys: Key[Array, " B"], drafts: Drafts = NO_DRAFTS) -> Generated:
        return decode(qwen2_decoder(config), weights, prompts, keys, settings, drafts)

    return run


@functools.lru_cache(maxsize=PROGRAMS)
def make_scorer(config: Qwen2Config, temperature: float = 1.0) -> Scorer:
    """The jitted program `(variables, prompts, completions) -> log-probabilities` of the completions' tokens.

    Completions are padded on the right, with 0 in the result.
    """

    @jax.jit
    def run(variables: PyTree, prompts: Prompts, completions: Prompts) -> Float[Array, "B T"]:
        tokens = jnp.concatenate([prompts.tokens, completions.tokens], axis=1)
        mask = jnp.concatenate([prompts.mask, completions.mask], axis=1)
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        hidden, _ = Qwen2(config).apply(variables, tokens, positions, mask.astype(jnp.int32))
        before = hidden[:, prompts.tokens.shape[1] - 1 : -1] / temperature
        head = output_head(variables["params"])
        return token_logprobs(before, head, completions.tokens, wanted=completions.mask, head_trained=False)

    return run


def generate_rows(
    slots: Slots,
    weights: PyTree,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    *,
    seed: int = 0,
    references: Sequence[Sequence[Sequence[int]]] | None = None,
    table: Table | None = None,
) -> Iterator[list[Continuation]]:
    """The G continuations of each prompt, in the order of `prompts`, whose numbers in their file are `rows`.

    Each comes as soon as those before it have ended, so that little is lost where a signal ends the command.
    `references` are texts of each prompt that drafts may come from.
    """
    width = bucket(max((sum(len(text) + 1 for text in texts) for texts in references or ()), default=0))
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(bucket(len(prompt)), []).append(index)
    # The first prompt's bucket is the first; devices that work in step over several processes need one order.
    order = sorted(by_length) if slots.layout.mode == "mesh" else list(by_length)

    def found() -> Iterator[tuple[int, list[Continuation]]]:
        for length in order:
            members = by_length[length]
            queue = (
                Request(
                    np.int32(rows[index]),
                    left_padded(prompts[index], length),
                    reference_of(references[index], width) if references else None,
                )
                for index in members
            )
            for place, generated in run_slots(slots, weights, queue, seed, table):
                yield members[place], continuations(generated)

    return in_order(found())


def continuations(generated: Generated) -> list[Continuation]:
    """Those of one prompt, from numpy leaves [G T]."""
    fields = generated.tokens, generated.log_probs, generated.lengths, generated.stopped, generated.finite
    return [
        Continuation(tokens[:n].tolist(), log_probs[:n].tolist(), bool(stopped), bool(finite), drafted[:n].tolist())
        for tokens, log_probs, n, stopped, finite, drafted in zip(*fields, generated.drafted, strict=True)
    ]


def reference_of(texts: Sequence[Sequence[int]], width: int) -> Int[np.ndarray, " R"]:
    """Texts one after the other, as `Drafts.reference` has them."""
    joined = [token for text in texts for token in (START, *text)]
    return np.array([*joined, *[START] * (width - len(joined))], np.int32)


def score_rows(
    scorer: Scorer,
    variables: PyTree,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    batch_size: int,
) -> list[list[float]]:
    """Log-probability of each token of each completion after its prompt, in the order given."""
    results: list[list[float]] = [[] for _ in prompts]
    lengths = [bucket(len(completion)) for completion in completions]
    for longest in sorted(set(lengths)):
        members = [row for row, length in enumerate(lengths) if length == longest]
        for indices, length in batches([len(prompts[row]) for row in members], batch_size):
            rows = [members[index] for index in indices]
            before = padded([prompts[row] for row in rows], length, left=True)
            after = padded([completions[row] for row in rows], longest, left=False)
            log_probs = np.asarray(scorer(variables, before, after))
            for row, values in zip(rows, log_probs, strict=True):
                results[row] = values[: len(completions[row])].tolist()
    return results


def row_keys(seed: int, rows: Sequence[int]) -> Key[Array, " N"]:
    """A key for each row number of a file, from one root key."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.asarray(rows, jnp.uint32))


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Rows of one bucket, `batch_size` at a time, and the bucket's length; the last row fills up a batch."""
    buckets = [bucket(length) for length in lengths]
    for length in sorted(set(buckets)):
        members = [row for row, own in enumerate(buckets) if own == length]
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            yield rows + [rows[-1]] * (batch_size - len(rows)), length


def bucket(length: int) -> int:
    """The smallest of 64, 96, 128, 192, ... that holds `length`: few programs, at most half of a row empty."""
    size = SHORTEST_BUCKET
    while size < length:
        if size * 3 // 2 >= length:
            return size * 3 // 2
        size *= 2
    return size


def left_padded(row: Sequence[int], length: int) -> Prompts:
    """A prompt of `length` columns, in numpy."""
    empty = length - len(row)
    arrays: tuple[Any, ...] = (np.array([0] * empty + list(row), np.int32), np.arange(length) >= empty)
    return Prompts(*arrays)


def padded(rows: Sequence[Sequence[int]], length: int, *, left: bool) -> Prompts:
    """Rows of tokens as one array of `length` columns."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[index, columns] = row
        mask[index, columns] = True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))
