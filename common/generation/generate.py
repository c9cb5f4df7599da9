"""Token lists in, token lists out: length buckets and batches around the compiled programs of `common.generation.loop`.

A row's result depends on its prompt, its key and the settings, not on the rows beside it: its bucket is that of its
own length, every batch has the same number of rows, and its random key comes with it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from common.generation.beams import beam_search
from common.generation.loop import Generated, generate, prefill
from common.generation.sampling import GREEDY, Sampling
from common.models.decoding import Forward, Prompts
from common.models.qwen2 import Qwen2, Qwen2Config, bind, output_head
from common.training.losses import token_logprobs
from common.types import PyTree

SHORTEST_BUCKET = 64
PROGRAMS = 8  # that a process keeps


@dataclasses.dataclass(frozen=True)
class DecodeSettings:
    """What shapes the compiled program of a generation."""

    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    beams: int = 1  # more than 1: beam search, which ignores `sampling`
    length_penalty: float = 1.0  # of the beam search
    group: int = 1  # samples of each prompt
    stop_ids: tuple[int, ...] = ()
    forbidden_ids: tuple[int, ...] = ()

    def forbidden(self, vocabulary: int) -> Bool[Array, " V"] | None:
        """True on the ids that are never emitted; None where all may be."""
        if not self.forbidden_ids:
            return None
        return jnp.zeros(vocabulary, bool).at[jnp.array(self.forbidden_ids)].set(True)


class Continuation(NamedTuple):
    """One continuation of one prompt; `token_ids` ends with the stop token where `stopped`.

    Where it is not `finite` the rest means nothing: it is an error to show it (`common.io.finite`).
    """

    token_ids: list[int]
    log_probs: list[float]
    stopped: bool
    finite: bool


Generator = Callable[[PyTree, Prompts, Key[Array, " B"]], Generated]
Scorer = Callable[[PyTree, Prompts, Prompts], Float[Array, "B T"]]


@functools.lru_cache(maxsize=PROGRAMS)
def make_generator(config: Qwen2Config, settings: DecodeSettings) -> Generator:
    """The jitted program `(variables, prompts, keys) -> Generated`, G = group or 1; the best beam where beams > 1.

    `variables` is {"params": ...}, with "lora" (scaled) beside it or not. Asked for again it is the same program, which
    compiles once for each shape.
    """

    @jax.jit
    def run(variables: PyTree, prompts: Prompts, keys: Key[Array, " B"]) -> Generated:
        return decode(bind(config, variables), output_head(variables["params"]), prompts, keys, settings)

    return run


def decode(
    forward: Forward, head: Float[Array, "V D"], prompts: Prompts, keys: Key[Array, " B"], settings: DecodeSettings
) -> Generated:
    """What the settings ask for, of any model: G = group samples of each prompt, or the best beam where beams > 1."""
    read = forward, head, prefill(forward, prompts)
    limits: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "stop_ids": settings.stop_ids,
        "forbidden": settings.forbidden(head.shape[0]),
    }
    if settings.beams == 1:
        return generate(*read, keys, sampling=settings.sampling, group=settings.group, **limits)
    found = beam_search(*read, beams=settings.beams, length_penalty=settings.length_penalty, **limits)
    return jax.tree.map(lambda leaf: leaf[:, :1], found.generated)


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
    generator: Generator,
    variables: PyTree,
    prompts: Sequence[Sequence[int]],
    keys: Key[Array, " N"],
    batch_size: int,
) -> list[list[Continuation]]:
    """The G continuations of each prompt, in the order of `prompts`."""
    results: list[list[Continuation]] = [[] for _ in prompts]
    for rows, length in batches([len(prompt) for prompt in prompts], batch_size):
        batch = padded([prompts[row] for row in rows], length, left=True)
        generated = jax.device_get(generator(variables, batch, keys[np.array(rows)]))
        for index, row in enumerate(rows):  # a row that fills up its batch comes again and is the same
            results[row] = [
                Continuation(tokens[:n].tolist(), log_probs[:n].tolist(), bool(stopped), bool(finite))
                for tokens, log_probs, n, stopped, finite in zip(
                    generated.tokens[index],
                    generated.log_probs[index],
                    generated.lengths[index],
                    generated.stopped[index],
                    generated.finite[index],
                    strict=True,
                )
            ]
    return results


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


def padded(rows: Sequence[Sequence[int]], length: int, *, left: bool) -> Prompts:
    """Rows of tokens as one array of `length` columns."""
    tokens = np.zeros((len(rows), length), np.int32)
    mask = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(0, len(row))
        tokens[index, columns] = row
        mask[index, columns] = True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))
