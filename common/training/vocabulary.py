"""Iteration over the vocabulary: `chunk` positions at a time, a tile of tokens at a time, without a logits tensor.

What is summed over the vocabulary is folded over tiles (`over_tiles`), for one chunk of positions after another
(`by_chunks`), of the wanted positions alone (`over_wanted`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from common.models.layers import BATCH_AXES, constrain
from common.types import PyTree

TILE = 8192  # tokens of the vocabulary, at least, that are visited at a time

Values = TypeVar("Values")


def over_wanted(
    visit: Callable[[Array, Array, int | Array, int], Values],
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    wanted: Bool[Array, "B S"] | None,
    chunk: int,
) -> Values:
    """`visit(hidden, targets, used, chunk)`, values [B S] of the first `used` chunks of positions: 0 where not wanted.

    Wanted positions are brought together first, so that others cost nothing: over all rows of a device, or under a
    mesh, which may split rows, within each.
    """
    rows, length = targets.shape
    chunk = min(chunk, length)
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
    values = visit(hidden, targets, used, chunk)
    if wanted is None:
        return jax.tree.map(lambda leaf: leaf[:, :length], values)

    def put_back(leaf: Array) -> Array:
        return jnp.where(wanted, _reorder(leaf[:, : order.shape[1]], inverse, order).reshape(rows, length), 0)

    return jax.tree.map(put_back, values)


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


def by_chunks(one: Callable[..., Any], used: int | Array, chunk: int, carry: PyTree, *inputs: Array) -> Any:
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


class Tiles(NamedTuple):
    """The head cut into tiles of at least `TILE` tokens: tile i holds every tiles-th token, from i on.

    A vocabulary that is split over devices (`tensor`) is so split evenly within each tile.
    """

    head: Float[Array, "rows tiles D"]
    forbidden: Bool[Array, "rows tiles"] | None


def cut(head: Float[Array, "V D"], forbidden: Bool[Array, " V"] | None) -> Tiles:
    """The tiles of a head."""
    vocabulary = head.shape[0]
    count = max((n for n in range(1, vocabulary // TILE + 1) if vocabulary % n == 0), default=1)
    tiles = constrain(head.reshape(-1, count, head.shape[1]), "tensor", None, None)
    return Tiles(tiles, None if forbidden is None else forbidden.reshape(-1, count))


def over_tiles(one: Callable[[Array, Tiles, Any], Any], tiles: Tiles, carry: PyTree) -> Any:
    """Fold `carry = one(i, tile i, carry)` over all tiles."""

    def body(i, carry):
        tile = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False), tiles)
        return one(i, tile, carry)

    return jax.lax.fori_loop(0, tiles.head.shape[1], body, carry)


def tile_logits(hidden: Float[Array, "B chunk D"], tile: Tiles) -> Float[Array, "B chunk rows"]:
    """Float32 logits of a tile's tokens, -inf where forbidden."""
    logits = jnp.einsum("bsd,vd->bsv", hidden, tile.head, preferred_element_type=jnp.float32)
    logits = constrain(logits, BATCH_AXES, None, "tensor")
    return logits if tile.forbidden is None else jnp.where(tile.forbidden, -jnp.inf, logits)


def target_logits(
    hidden: Float[Array, "B chunk D"], head: Float[Array, "V D"], targets: Int[Array, "B chunk"]
) -> Float[Array, "B chunk"]:
    """Float32 logits of the targets."""
    return jnp.einsum("bsd,bsd->bs", hidden, head[targets], preferred_element_type=jnp.float32)


def weighted_rows(weights: Float[Array, "B chunk rows"], head: Float[Array, "rows D"]) -> Float[Array, "B chunk D"]:
    """Sums of a tile's rows of the head."""
    return jnp.einsum("bsv,vd->bsd", weights.astype(head.dtype), head, preferred_element_type=jnp.float32)


def at_targets(i: Array, tiles: Tiles, targets: Int[Array, "B chunk"]) -> Float[Array, "B chunk rows"]:
    """1 at the target of each position where it is in tile i, 0 elsewhere."""
    rows, count, _ = tiles.head.shape
    return jax.nn.one_hot(jnp.where(targets % count == i, targets // count, -1), rows)


def gradients_through_logits(
    errors: Callable[..., Callable[[Array, Tiles], Array]],
    tiles: Tiles,
    used: int | Array,
    chunk: int,
    head_trained: bool,
    hidden: Float[Array, "B S D"],
    *inputs: Array,
) -> tuple[Float[Array, "B S D"], Float[Array, "V D"] | None]:
    """Gradients of hidden states and, where it is trained, of the head, from those of the logits.

    `errors(hidden, *inputs)` of a chunk gives the function `(i, tile i)` to the gradient of its logits.
    """

    def one(head_gradient, hidden, *inputs):
        error_of = errors(hidden, *inputs)

        def of_tile(i, tile, carry):
            head_gradient, gradient = carry
            error = error_of(i, tile).astype(tile.head.dtype)
            if head_trained:
                add = jnp.einsum("bsv,bsd->vd", error, hidden, preferred_element_type=jnp.float32)
                head_gradient = head_gradient.at[:, i].add(add)
            return head_gradient, gradient + weighted_rows(error, tile.head)

        return over_tiles(of_tile, tiles, (head_gradient, jnp.zeros(hidden.shape, jnp.float32)))

    zeros = jnp.zeros(tiles.head.shape, jnp.float32) if head_trained else None
    head_gradient, gradient = by_chunks(one, used, chunk, zeros, hidden, *inputs)
    if head_gradient is not None:
        head_gradient = head_gradient.reshape(-1, hidden.shape[-1]).astype(tiles.head.dtype)
    return gradient.astype(hidden.dtype), head_gradient
