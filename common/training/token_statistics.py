"""Statistics of a position's distribution, besides the target's log-probability, without a logits tensor.

Label smoothing is `(1 - e) * logp + e * mean_logp`, an entropy bonus adds `entropy`, a z-loss (arXiv:2204.02311) is the
square of `log_normalizer`. The gradient of each is a sum over the vocabulary, so the backward pass computes each tile
of logits again; where `logp` alone is needed, `common.training.losses.token_logprobs` is faster.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models.layers import constrain
from common.training.vocabulary import (
    Tiles,
    at_targets,
    by_chunks,
    cut,
    gradients_through_logits,
    over_tiles,
    over_wanted,
    target_logits,
    tile_logits,
)


class TokenLogprobs(NamedTuple):
    """Of the distribution at each position, in float32. A logit is a log-probability plus `log_normalizer`."""

    logp: Float[Array, "B S"]  # of the target
    log_normalizer: Float[Array, "B S"]  # log of the sum of the exponentials of the logits
    mean_logp: Float[Array, "B S"]  # mean of the log-probabilities of all tokens that are not forbidden
    entropy: Float[Array, "B S"]


def token_statistics(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    wanted: Bool[Array, "B S"] | None = None,
    chunk: int = 128,
    head_trained: bool,
    forbidden: Bool[Array, " V"] | None = None,
) -> TokenLogprobs:
    """Statistics of softmax(hidden @ head.T) at every position; the arguments are those of `token_logprobs`.

    As there, values are 0 where not `wanted`, and the gradient with respect to a head that is not trained is zero.
    """
    # Under a mesh: gather the head once, not once per chunk.
    head = constrain(head.astype(hidden.dtype), "tensor", None)

    def visit(hidden: Array, targets: Array, used: int | Array, chunk: int) -> TokenLogprobs:
        return _statistics(hidden, head, targets, used, forbidden, chunk, head_trained)

    return over_wanted(visit, hidden, targets, wanted, chunk)


class _Sums(NamedTuple):
    """Sums over the tokens visited so far, with exponentials relative to the largest logit among them."""

    largest: Float[Array, "B chunk"]
    exponentials: Float[Array, "B chunk"]
    weighted: Float[Array, "B chunk"]  # exponentials times (logit - largest)
    logits: Float[Array, "B chunk"]  # of tokens that are not forbidden


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _statistics(hidden, head, targets, used, forbidden, chunk, head_trained) -> TokenLogprobs:
    tiles, allowed = cut(head, forbidden), _allowed(head, forbidden)

    def one(_, hidden, targets):
        sums = _summed(hidden, tiles)
        log_normalizer = sums.largest + jnp.log(sums.exponentials)
        return None, TokenLogprobs(
            logp=target_logits(hidden, head, targets) - log_normalizer,
            log_normalizer=log_normalizer,
            mean_logp=sums.logits / allowed - log_normalizer,
            entropy=jnp.log(sums.exponentials) - sums.weighted / sums.exponentials,
        )

    return by_chunks(one, used, chunk, None, hidden, targets)[1]


def _summed(hidden: Float[Array, "B chunk D"], tiles: Tiles) -> _Sums:
    def one(_, tile, before):
        logits = tile_logits(hidden, tile)
        largest = jnp.maximum(before.largest, logits.max(-1))
        shrink, exponentials = jnp.exp(before.largest - largest), jnp.exp(logits - largest[..., None])
        finite = _finite(logits, tile)
        return _Sums(
            largest=largest,
            exponentials=before.exponentials * shrink + exponentials.sum(-1),
            weighted=(before.weighted + (before.largest - largest) * before.exponentials) * shrink
            + (exponentials * (finite - largest[..., None])).sum(-1),
            logits=before.logits + finite.sum(-1),
        )

    zeros = jnp.zeros(hidden.shape[:2], jnp.float32)
    return over_tiles(one, tiles, _Sums(jnp.full_like(zeros, jnp.finfo(jnp.float32).min), zeros, zeros, zeros))


def _finite(logits: Float[Array, "B chunk rows"], tile: Tiles) -> Float[Array, "B chunk rows"]:
    """0 in place of -inf, where a probability of 0 is to give a product of 0."""
    return logits if tile.forbidden is None else jnp.where(tile.forbidden, 0, logits)


def _allowed(head: Array, forbidden: Array | None) -> int | Array:
    return head.shape[0] if forbidden is None else (~forbidden).sum()


def _forward(hidden, head, targets, used, forbidden, chunk, head_trained):
    found = _statistics(hidden, head, targets, used, forbidden, chunk, head_trained)
    return found, (hidden, head, targets, used, forbidden, found.log_normalizer, found.entropy)


def _backward(chunk, head_trained, residuals, cotangents):
    """With p the probabilities and H the entropy, the gradients with respect to logit i are 1[i is the target] - p_i of
    `logp`, p_i of `log_normalizer`, 1 / V - p_i of `mean_logp`, and -p_i (log p_i + H) of `entropy`.
    """
    hidden, head, targets, used, forbidden, log_normalizer, entropy = residuals
    tiles, allowed = cut(head, forbidden), _allowed(head, forbidden)

    def errors(hidden, targets, log_normalizer, entropy, *cotangents):
        of_logp, of_normalizer, of_mean, of_entropy = (cotangent[..., None] for cotangent in cotangents)
        through_p = of_normalizer - of_logp - of_mean - of_entropy * entropy[..., None]

        def of_tile(i, tile):
            logp = tile_logits(hidden, tile) - log_normalizer[..., None]
            error = of_logp * at_targets(i, tiles, targets)
            error += jnp.exp(logp) * (through_p - of_entropy * _finite(logp, tile)) + of_mean / allowed
            return error if tile.forbidden is None else jnp.where(tile.forbidden, 0, error)

        return of_tile

    gradients = gradients_through_logits(
        errors, tiles, used, chunk, head_trained, hidden, targets, log_normalizer, entropy, *cotangents
    )
    return *gradients, None, None, None


_statistics.defvjp(_forward, _backward)
