"""Log-probabilities of tokens without a logits tensor, and the losses that are weighted sums of them.

Nothing of shape [B, S, V] ever exists: the vocabulary is visited a tile at a time, for `chunk` positions at a time
(`common.training.vocabulary`). `common.training.token_statistics` gives more than a log-probability of each position.
With a frozen head the forward pass also keeps the Jacobian of each log-probability, d logp / d hidden =
head[target] - softmax @ head, which is as large as `hidden`, and the backward pass is one multiplication. With a
trained head, which may be the tied embedding, the backward pass recomputes each tile and accumulates its gradient.
"""

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
    weighted_rows,
)
from common.types import LossSum


def token_logprobs(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    wanted: Bool[Array, "B S"] | None = None,
    chunk: int = 128,
    head_trained: bool,
    forbidden: Bool[Array, " V"] | None = None,
) -> Float[Array, "B S"]:
    """log softmax(hidden @ head.T)[target] of every position, in float32; of those `wanted`, and 0 elsewhere.

    `chunk` positions of each row are expanded to a tile of the vocabulary at a time. Wanted positions are brought
    together first, so that prompts and padding cost nothing: over all rows of a device, or under a mesh, which may
    split rows, within each. With `head_trained` false the gradient with respect to `head` is zero, whatever is asked.
    The softmax leaves out what is `forbidden`, as sampling does; a forbidden target's value means nothing.
    """
    # Under a mesh: gather the head once, not once per chunk.
    head = constrain(head.astype(hidden.dtype), "tensor", None)
    of_chunks = _with_trained_head if head_trained else _with_frozen_head

    def visit(hidden: Array, targets: Array, used: int | Array, chunk: int) -> Array:
        return of_chunks(hidden, head, targets, used, forbidden, chunk)

    return over_wanted(visit, hidden, targets, wanted, chunk)


def answer_loss(logp: Float[Array, "B S"], weights: Float[Array, "B S"]) -> LossSum:
    """Cross-entropy of the weighted tokens, as a sum (supervised fine-tuning)."""
    return LossSum(-(logp * weights).sum(), weights.sum())


def _normaliser(hidden: Array, tiles: Tiles, expect: bool) -> tuple[Array, Array | None]:
    """log sum exp of the logits, and with `expect` also softmax(logits) @ head, in one visit to each tile.

    Both are kept relative to the largest logit so far, and shrink when a larger one appears.
    """
    shape = hidden.shape[:2]

    def one(_, tile, carry):
        largest, total, expected = carry
        logits = tile_logits(hidden, tile)
        now = jnp.maximum(largest, logits.max(-1))
        shrink, scaled = jnp.exp(largest - now), jnp.exp(logits - now[..., None])
        if expect:
            expected = expected * shrink[..., None] + weighted_rows(scaled, tile.head)
        return now, total * shrink + scaled.sum(-1), expected

    expected = jnp.zeros(hidden.shape, jnp.float32) if expect else None
    start = (jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape, jnp.float32), expected)
    largest, total, expected = over_tiles(one, tiles, start)
    return largest + jnp.log(total), expected / total[..., None] if expect else None


def _primal(hidden, head, targets, used, forbidden, chunk):
    tiles = cut(head, forbidden)

    def one(_, hidden, targets):
        return None, target_logits(hidden, head, targets) - _normaliser(hidden, tiles, False)[0]

    return by_chunks(one, used, chunk, None, hidden, targets)[1]


_with_frozen_head = jax.custom_vjp(_primal, nondiff_argnums=(5,))
_with_trained_head = jax.custom_vjp(_primal, nondiff_argnums=(5,))


def _frozen_forward(hidden, head, targets, used, forbidden, chunk):
    tiles = cut(head, forbidden)

    def one(_, hidden, targets):
        normaliser, expected = _normaliser(hidden, tiles, True)
        return None, (
            target_logits(hidden, head, targets) - normaliser,
            (head[targets] - expected).astype(hidden.dtype),
        )

    return by_chunks(one, used, chunk, None, hidden, targets)[1]


def _frozen_backward(chunk, jacobian, cotangent):
    return (cotangent[..., None] * jacobian).astype(jacobian.dtype), None, None, None, None


def _trained_forward(hidden, head, targets, used, forbidden, chunk):
    logp = _primal(hidden, head, targets, used, forbidden, chunk)
    return logp, (hidden, head, targets, used, forbidden, logp)


def _trained_backward(chunk, residuals, cotangent):
    hidden, head, targets, used, forbidden, logp = residuals
    tiles = cut(head, forbidden)

    def errors(hidden, targets, logp, cotangent):
        normaliser = target_logits(hidden, head, targets) - logp

        def of_tile(i, tile):
            error = at_targets(i, tiles, targets) - jnp.exp(tile_logits(hidden, tile) - normaliser[..., None])
            return cotangent[..., None] * error

        return of_tile

    gradients = gradients_through_logits(errors, tiles, used, chunk, True, hidden, targets, logp, cotangent)
    return *gradients, None, None, None


_with_frozen_head.defvjp(_frozen_forward, _frozen_backward)
_with_trained_head.defvjp(_trained_forward, _trained_backward)
