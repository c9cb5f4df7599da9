"""Putting new prompts into the slots of a decoding state: on one device, or within each part of a split state."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from common.types import PyTree


def put(state: Any, new: Any, slots: Int[Array, " R"]) -> Any:
    """`state` with new prompts in some of its slots, one after the other; slots that do not exist are ignored."""
    axes = row_axes(state)

    def place(number: Array, state: Any) -> Any:
        slot = slots[number]

        def one(old: Array, new: Array, axis: int) -> Array:
            row = jax.lax.dynamic_slice_in_dim(new, number, 1, axis)
            there = jax.lax.dynamic_slice_in_dim(old, slot, 1, axis)
            kept = jnp.where(slot < old.shape[axis], row, there)
            return jax.lax.dynamic_update_slice_in_dim(old, kept, slot, axis)

        return jax.tree.map(one, state, new, axes)

    return jax.lax.fori_loop(0, slots.shape[0], place, state)


def row_axes(state: Any) -> Any:
    """The axis of the prompts in each leaf."""

    def from_behind(tree: PyTree, axes: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim - axes, tree)

    prompts = state.prompts.replace(
        keys_values=from_behind(state.prompts.keys_values, 4),
        context=from_behind(state.prompts.context, 4),
        **{name: 0 for name in ("hidden", "mask", "next_position")},
    )
    first = jax.tree.map(lambda leaf: 0, state.replace(prompts=None, suffix=None))
    return first.replace(prompts=prompts, suffix=from_behind(state.suffix, 5))


def put_in_parts(state: Any, new: Any, slots: Int[Array, " N"], parts: int) -> Any:
    """`put` where a mesh splits the prompts into P parts: R of the new ones belong to each, which stay where they are.

    `slots` [P*R] are numbers within a part.
    """
    axes = row_axes(state)
    count = state.done.shape[0] // parts
    taken = slots.reshape(parts, 1, -1) == jnp.arange(count)[:, None]  # [P S R]
    source, changed = jnp.argmax(taken, axis=-1), taken.any(axis=-1)

    def one(old: Array, new: Array, axis: int) -> Array:
        def of_part(old: Array, new: Array, source: Array, changed: Array) -> Array:
            rows = jnp.take(new, source, axis=axis)
            return jnp.where(jnp.expand_dims(changed, [d for d in range(rows.ndim) if d != axis]), rows, old)

        old_parts, new_parts = (
            leaf.reshape(*leaf.shape[:axis], parts, -1, *leaf.shape[axis + 1 :]) for leaf in (old, new)
        )
        return jax.vmap(of_part, (axis, axis, 0, 0), axis)(old_parts, new_parts, source, changed).reshape(old.shape)

    return jax.tree.map(one, state, new, axes)
