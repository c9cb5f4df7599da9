"""Log-probabilities of tokens without a logits tensor, and the losses that are weighted sums of them.

Nothing of shape [B, S, V] ever exists: the vocabulary is visited a tile at a time, for `chunk` positions at a time.
With a frozen head the forward pass also keeps the Jacobian of each log-probability, d logp / d hidden =
head[target] - softmax @ head, which is as large as `hidden`, and the backward pass is one multiplication. With a
trained head, which may be the tied embedding, the backward pass recomputes each tile and accumulates its gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models.layers import BATCH_AXES, constrain
from common.types import LossSum

TILE = 8192  # tokens of the vocabulary, at least, that are visited at a time


def token_logprobs(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    *,
    wanted: Bool[Array, "B S"] | None = None,
    chunk: int = 128,
    head_trained: bool = False,
    forbidden: Bool[Array, "V"] | None = None,
) -> Float[Array, "B S"]:
    """log softmax(hidden @ head.T)[target] of every position, in float32; of those `wanted`, and 0 elsewhere.

    `chunk` positions of each row are expanded to a tile of the vocabulary at a time. Wanted positions are brought
    together first, so that prompts and padding cost nothing: over all rows of a device, or under a mesh, which may
    split rows, within each. With `head_trained` false the gradient with respect to `head` is zero, whatever is asked.
    The softmax leaves out what is `forbidden`, as sampling does; a forbidden target's value means nothing.
    """
    rows, length = targets.shape
    chunk = min(chunk, length)
    # Under a mesh: gather the head once, not once per chunk.
    head = constrain(head.astype(hidden.dtype), "tensor", None)
    used: int | Array = -(-length // chunk)
    if wanted is not None:
        kept = wanted
        if jax.sharding.get_abstract_mesh().empty:
            hidden, targets, kept = (
                hidden.reshape(1, -1, hidden.shape[-1]),
                targets.reshape(1, -1),
                wanted.reshape(1, -1),
            )
            chunk *= rows
        order = jnp.argsort(~kept, axis=1, stable=True)
        inverse = jnp.argsort(order, axis=1)
        hidden, targets = _reorder(hidden, order, inverse), _reorder(targets, order, inverse)
        used = -(-kept.sum(1).max() // chunk)
    padding = -targets.shape[1] % chunk
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, padding)))
    logp = (_with_trained_head if head_trained else _with_frozen_head)(hidden, head, targets, used, forbidden, chunk)
    if wanted is None:
        return logp[:, :length]
    logp = _reorder(logp[:, : order.shape[1]], inverse, order).reshape(rows, length)
    return jnp.where(wanted, logp, 0)


def answer_loss(logp: Float[Array, "B S"], weights: Float[Array, "B S"]) -> LossSum:
    """Cross-entropy of the weighted tokens, as a sum (supervised fine-tuning)."""
    return LossSum(-(logp * weights).sum(), weights.sum())


@jax.custom_vjp
def _reorder(x: Array, order: Int[Array, "B S"], inverse: Int[Array, "B S"]) -> Array:
    """Positions of each row in another order; the gradient is gathered by the inverse, where JAX's own is scattered."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), axis=1)


def _reorder_forward(x, order, inverse):
    return _reorder(x, order, inverse), (order, inverse)


def _reorder_backward(saved, gradient):
    order, inverse = saved
    return _reorder(gradient, inverse, order), None, None


_reorder.defvjp(_reorder_forward, _reorder_backward)


def _by_chunks(one, used, chunk, carry, *inputs):
    """Run `carry, outputs = one(carry, *parts)` on the first `used` chunks of [B, S, ...]; outputs are 0 after them."""

    def part(x, start):
        return jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1)

    def body(i, state):
        carry, outputs = state
        carry, new = one(carry, *(part(x, i * chunk) for x in inputs))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * chunk, axis=1)
        return carry, jax.tree.map(put, outputs, new)

    shapes = jax.eval_shape(lambda: one(carry, *(part(x, 0) for x in inputs))[1])
    length = inputs[0].shape[1]
    empty = jax.tree.map(lambda x: jnp.zeros((x.shape[0], length, *x.shape[2:]), x.dtype), shapes)
    return jax.lax.fori_loop(0, used, body, (carry, empty))


class _Tiles(NamedTuple):
    """The head cut into tiles of at least `TILE` tokens: tile i holds every tiles-th token, from i on.

    A vocabulary that is split over devices (`tensor`) is so split evenly within each tile.
    """

    head: Float[Array, "rows tiles D"]
    forbidden: Bool[Array, "rows tiles"] | None


def _tiles(head: Array, forbidden: Array | None) -> _Tiles:
    vocabulary = head.shape[0]
    count = max((n for n in range(1, vocabulary // TILE + 1) if vocabulary % n == 0), default=1)
    tiles = constrain(head.reshape(-1, count, head.shape[1]), "tensor", None, None)
    return _Tiles(tiles, None if forbidden is None else forbidden.reshape(-1, count))


def _over_tiles(one, tiles: _Tiles, carry):
    """Fold `carry = one(i, tile i, carry)` over all tiles."""

    def body(i, carry):
        tile = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False), tiles)
        return one(i, tile, carry)

    return jax.lax.fori_loop(0, tiles.head.shape[1], body, carry)


def _logits(hidden: Array, tile: _Tiles) -> Float[Array, "B chunk V"]:
    logits = jnp.einsum("bsd,vd->bsv", hidden, tile.head, preferred_element_type=jnp.float32)
    logits = constrain(logits, BATCH_AXES, None, "tensor")
    return logits if tile.forbidden is None else jnp.where(tile.forbidden, -jnp.inf, logits)


def _expected(weights: Array, head: Array) -> Float[Array, "B chunk D"]:
    return jnp.einsum("bsv,vd->bsd", weights.astype(head.dtype), head, preferred_element_type=jnp.float32)


def _chosen(hidden: Array, head: Array, targets: Array) -> Float[Array, "B chunk"]:
    """Logits of the targets."""
    return jnp.einsum("bsd,bsd->bs", hidden, head[targets], preferred_element_type=jnp.float32)


def _normaliser(hidden: Array, tiles: _Tiles, expect: bool) -> tuple[Array, Array | None]:
    """log sum exp of the logits, and with `expect` also softmax(logits) @ head, in one visit to each tile.

    Both are kept relative to the largest logit so far, and shrink when a larger one appears.
    """
    shape = hidden.shape[:2]

    def one(_, tile, carry):
        largest, total, expected = carry
        logits = _logits(hidden, tile)
        now = jnp.maximum(largest, logits.max(-1))
        shrink, scaled = jnp.exp(largest - now), jnp.exp(logits - now[..., None])
        if expect:
            expected = expected * shrink[..., None] + _expected(scaled, tile.head)
        return now, total * shrink + scaled.sum(-1), expected

    expected = jnp.zeros(hidden.shape, jnp.float32) if expect else None
    start = (jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape, jnp.float32), expected)
    largest, total, expected = _over_tiles(one, tiles, start)
    return largest + jnp.log(total), expected / total[..., None] if expect else None


def _primal(hidden, head, targets, used, forbidden, chunk):
    tiles = _tiles(head, forbidden)

    def one(_, hidden, targets):
        return None, _chosen(hidden, head, targets) - _normaliser(hidden, tiles, False)[0]

    return _by_chunks(one, used, chunk, None, hidden, targets)[1]


_with_frozen_head = jax.custom_vjp(_primal, nondiff_argnums=(5,))
_with_trained_head = jax.custom_vjp(_primal, nondiff_argnums=(5,))


def _frozen_forward(hidden, head, targets, used, forbidden, chunk):
    tiles = _tiles(head, forbidden)

    def one(_, hidden, targets):
        normaliser, expected = _normaliser(hidden, tiles, True)
        return None, (_chosen(hidden, head, targets) - normaliser, (head[targets] - expected).astype(hidden.dtype))

    return _by_chunks(one, used, chunk, None, hidden, targets)[1]


def _frozen_backward(chunk, jacobian, cotangent):
    return (cotangent[..., None] * jacobian).astype(jacobian.dtype), None, None, None, None


def _trained_forward(hidden, head, targets, used, forbidden, chunk):
    logp = _primal(hidden, head, targets, used, forbidden, chunk)
    return logp, (hidden, head, targets, used, forbidden, logp)


def _trained_backward(chunk, residuals, cotangent):
    hidden, head, targets, used, forbidden, logp = residuals
    tiles = _tiles(head, forbidden)
    rows, count, _ = tiles.head.shape

    def one(head_gradient, hidden, targets, logp, cotangent):
        normaliser = _chosen(hidden, head, targets) - logp

        def of_tile(i, tile, carry):
            head_gradient, gradient = carry
            here = jnp.where(targets % count == i, targets // count, -1)
            error = jax.nn.one_hot(here, rows) - jnp.exp(_logits(hidden, tile) - normaliser[..., None])
            error = (cotangent[..., None] * error).astype(head.dtype)
            add = jnp.einsum("bsv,bsd->vd", error, hidden, preferred_element_type=jnp.float32)
            return head_gradient.at[:, i].add(add), gradient + _expected(error, tile.head)

        return _over_tiles(of_tile, tiles, (head_gradient, jnp.zeros(hidden.shape, jnp.float32)))

    zeros = jnp.zeros(tiles.head.shape, jnp.float32)
    head_gradient, gradient = _by_chunks(one, used, chunk, zeros, hidden, targets, logp, cotangent)
    return gradient.astype(hidden.dtype), head_gradient.reshape(head.shape).astype(head.dtype), None, None, None


_with_frozen_head.defvjp(_frozen_forward, _frozen_backward)
_with_trained_head.defvjp(_trained_forward, _trained_backward)
