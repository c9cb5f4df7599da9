"""Choosing the next token: greedy, temperature, top-k and top-p (nucleus, arXiv:1904.09751), without sorting.

Logits are [V N], a column for each of N rows of a batch: the product with the head leaves them so, and sums over the
vocabulary add whole columns at a time. A token comes from one uniform number per row through a cumulative sum over
blocks of the vocabulary, then over one block. Under top-p it is drawn from all tokens until it is one of the nucleus,
which one sum over the vocabulary tells: at most 1 / top_p draws on average give the truncated distribution exactly. The
smallest logit of top-k is found by bisection over the ordered bit patterns of float32, in about 30 sums whatever the
distribution.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.models import cpu_ops
from common.models.cpu_ops import on_cpu
from common.models.layers import hash_words

BLOCK = 128  # tokens per block of the cumulative sum


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the most likely one; top_k 0 and top_p 1 keep the whole vocabulary.

    top_k comes first; top_p is the share of the mass that top_k leaves, as in transformers.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


def choose_tokens(
    logits: Float[Array, "V N"], uniform: Float[Array, " N"], sampling: Sampling
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """A token for each row and its log-probability under softmax(logits / temperature).

    That is the policy's distribution: before top-k and top-p, after anything the caller has set to -inf. The greedy
    choice is scored at temperature 1. `uniform` in [0, 1) decides everything; greedy ignores it.
    """
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    highest = _blocks(logits, fill=-jnp.inf).max(axis=0).max(axis=0)
    weights = jnp.exp(logits - highest)
    log_normaliser = jnp.log(_total(weights)) + highest
    if sampling.temperature == 0:
        tokens = likeliest(logits)
    else:
        tokens = draw_nucleus(keep_top_k(logits, weights, sampling.top_k), uniform, sampling.top_p)
    return tokens.astype(jnp.int32), _at(logits, tokens) - log_normaliser


def likeliest(logits: Float[Array, "V N"]) -> Int[Array, " N"]:
    """The first index of each row's largest value."""
    return cpu_ops.argmax(logits) if on_cpu() else jnp.argmax(logits, axis=0)


def keep_top_k(logits: Float[Array, "V N"], weights: Float[Array, "V N"], top_k: int) -> Float[Array, "V N"]:
    """`weights` (proportional to the probabilities) with those outside the top_k set to 0; 0 keeps all.

    Tokens that tie with the last one kept are kept too.
    """
    if not 0 < top_k < logits.shape[0]:
        return weights
    kept = largest_threshold(logits, lambda bound: _total(logits >= bound) >= top_k)
    return jnp.where(logits >= kept, weights, 0.0)


def draw_nucleus(weights: Float[Array, "V N"], uniform: Float[Array, " N"], top_p: float) -> Int[Array, " N"]:
    """An index of each row's nucleus with probability proportional to its weight.

    Rejected draws are repeated with numbers hashed from `uniform`, so a row's token does not depend on other rows.
    """
    if top_p >= 1:
        return draw(weights, uniform)
    words = jax.lax.bitcast_convert_type(uniform, jnp.uint32)

    def repeat(state):
        attempt, tokens, accepted = state
        again = hash_words(hash_words(words) + attempt) >> 8
        candidates = draw(weights, jnp.where(attempt == 0, uniform, again.astype(jnp.float32) * 2.0**-24))
        tokens = jnp.where(accepted, tokens, candidates)
        return attempt + 1, tokens, accepted | in_nucleus(weights, candidates, top_p)

    def unfinished(state):
        # The nucleus has at least the mass top_p and that of the likeliest token, so all of so many draws fall outside
        # with a probability of at most e^-100.
        return ~state[2].all() & (state[0] < int(100 * min(1 / top_p, weights.shape[0])) + 1)

    start = (jnp.uint32(0), jnp.zeros(uniform.shape, jnp.int32), jnp.zeros(uniform.shape, bool))
    return jax.lax.while_loop(unfinished, repeat, start)[1]


def in_nucleus(weights: Float[Array, "V N"], tokens: Int[Array, " N"], top_p: float) -> Bool[Array, " N"]:
    """Whether the tokens of larger weight have less than top_p of the mass. Ties with the last one kept are kept."""
    own = _at(weights, tokens)
    # A bound that rounds to 0 would leave out the likeliest token too.
    bound = jnp.maximum(top_p * _total(weights), jnp.finfo(jnp.float32).tiny)
    return _total(jnp.where(weights > own, weights, 0.0)) < bound


def draw(weights: Float[Array, "V N"], uniform: Float[Array, " N"]) -> Int[Array, " N"]:
    """An index of each row with probability proportional to its weight, by inverting the cumulative sum.

    An index of weight 0 is never drawn, however the sums round.
    """
    blocks = _blocks(weights)
    sums = blocks.sum(axis=1)
    block, rest = _invert(sums, uniform * sums.sum(axis=0))
    index, _ = _invert(_block_at(blocks, block), rest)
    return block * BLOCK + index


def row_uniforms(keys: Key[Array, " B"], group: int, steps: int) -> Float[Array, "B G T"]:
    """Uniform numbers in [0, 1) that depend on a row's key, the sample and the step only.

    So a sample is the same whatever batch its prompt is in, and whatever the number of steps allowed.
    """

    def one(key, sample, step):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), step))

    over_steps = jax.vmap(one, in_axes=(None, None, 0))
    over_group = jax.vmap(over_steps, in_axes=(None, 0, None))
    return jax.vmap(over_group, in_axes=(0, None, None))(keys, jnp.arange(group), jnp.arange(steps))


def largest_threshold(values: Float[Array, "V N"], enough: Callable[[Float[Array, " N"]], Array]) -> Float[Array, " N"]:
    """The largest float `bound` of each row with `enough(bound)`, which holds at -inf and falls once above."""
    highest = values.max(axis=0)
    start = _ordered(jnp.full_like(highest, -jnp.inf)), _ordered(highest) + 1

    def halve(interval):
        low, high = interval
        middle = (low & high) + ((low ^ high) >> 1)  # the mean without overflow
        holds = enough(_float(middle))
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    low, _ = jax.lax.while_loop(lambda interval: (interval[1] != interval[0] + 1).any(), halve, start)
    return _float(low)


def _ordered(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Bits of float32 as integers that order as the floats do (two's complement from sign and magnitude)."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float(ordered: Int[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `_ordered`, which is its own inverse."""
    return jax.lax.bitcast_convert_type(ordered ^ ((ordered >> 31) & 0x7FFFFFFF), jnp.float32)


def _blocks(x: Array, fill: float = 0.0) -> Array:
    """[V N] as [V/BLOCK BLOCK N], padded with `fill`."""
    padding = -x.shape[0] % BLOCK
    if padding:
        x = jnp.pad(x, ((0, padding), (0, 0)), constant_values=fill)
    return x.reshape(-1, BLOCK, x.shape[-1])


def _total(x: Array) -> Float[Array, " N"]:
    """Sum over the vocabulary, first within blocks, as `draw` adds them."""
    return _blocks(x).astype(jnp.float32).sum(axis=1).sum(axis=0)


def _at(x: Float[Array, "V N"], indices: Int[Array, " N"]) -> Float[Array, " N"]:
    return jnp.take_along_axis(x, indices[None], axis=0)[0]


def _block_at(blocks: Float[Array, "C BLOCK N"], block: Int[Array, " N"]) -> Float[Array, "BLOCK N"]:
    return jnp.take_along_axis(blocks, block[None, None], axis=0)[0]


def _invert(parts: Float[Array, "C N"], target: Float[Array, " N"]) -> tuple[Array, Array]:
    """The first part of weight where the running sum exceeds `target`, and what of the target is left there.

    Running sums round, and in no fixed order; where that leaves no such part, it is the largest one.
    """
    running = jnp.cumsum(parts, axis=0)
    found = (running > target) & (parts > 0)
    index = jnp.where(found.any(axis=0), jnp.argmax(found, axis=0), jnp.argmax(parts, axis=0))
    return index, target - _at(running - parts, index)
