"""The training step. All training in this project is a loss function passed to `make_train_step`.

A loss returns sums, never means: the gradients of the sums are added over micro-batches and devices and divided once
by the total weight, so a batch gives the same update however it is split.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from common.types import LossSum, PyTree, TrainState

# loss_fn(trainable, frozen, batch, rng) -> the loss to differentiate, and further sums to report by name
LossFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[LossSum, dict[str, LossSum]]]
TrainStep = Callable[[TrainState, PyTree, PyTree, Array], tuple[TrainState, dict[str, Array]]]


def init_state(trainable: PyTree, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers: each is donated
    return TrainState(step, trainable, tx.init(trainable), skipped, in_a_row)


def make_train_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, accumulate: int = 1, axis_name: str | None = None
) -> TrainStep:
    """Build `step(state, frozen, batch, rng) -> (state, metrics)`, a pure function to be jitted or pmapped.

    `batch` is a `common.types.Batch` with leaves [B, ...], B a multiple of `accumulate`; under pmap (`axis_name`), B is
    one device's rows. `tokens` among the metrics is the number of real ones on all devices.
    `rng` is the root key of the run; the step number is folded in here. An update that is not finite, or whose
    gradient or loss is not, leaves the parameters and the optimizer as they were and is counted.
    """

    def step(state: TrainState, frozen: PyTree, batch: PyTree, rng: Array):
        rng = jax.random.fold_in(rng, state.step)
        if axis_name is not None:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        gradients, sums = summed_gradients(loss_fn, state.trainable, frozen, batch, rng, accumulate)
        tokens = batch.real_tokens
        if axis_name is not None:
            gradients = jax.lax.psum(gradients, axis_name)
            sums, tokens = summed_scalars((sums, tokens), axis_name)
        weight = sums["loss"].weight
        gradients = jax.tree.map(lambda g: g / jnp.where(weight > 0, weight, 1).astype(g.dtype), gradients)

        norm = optax.tree.norm(gradients)
        updates, opt_state = tx.update(gradients, state.opt_state, state.trainable)
        # The optimizer can make NaN of a finite gradient: 0 / 0 where its second moment is 0, for one.
        finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"].total) & jnp.isfinite(optax.tree.norm(updates))
        trainable = optax.apply_updates(state.trainable, updates)

        def keep(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        state = TrainState(
            step=state.step + 1,
            trainable=keep(trainable, state.trainable),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics = {name: value.total / jnp.maximum(value.weight, 1e-9) for name, value in sums.items()}
        metrics |= {"grad_norm": norm, "weight": weight, "tokens": tokens}
        metrics |= {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
        return state, metrics

    return step


def summed_gradients(
    loss_fn: LossFn, trainable: PyTree, frozen: PyTree, batch: PyTree, rng: Array, accumulate: int
) -> tuple[PyTree, dict[str, LossSum]]:
    """Gradient of the summed loss, and the sums themselves, over `accumulate` micro-batches one after the other."""

    def one(micro_batch: PyTree, key: Array):
        def total(trainable):
            loss, aux = loss_fn(trainable, frozen, micro_batch, key)
            return loss.total, {"loss": loss, **aux}

        return jax.grad(total, has_aux=True)(trainable)

    if accumulate == 1:
        return one(batch, rng)

    def strided(leaf: Array) -> Array:
        # Micro-batch i takes rows i, i + accumulate, ...: each device keeps the rows it has under a sharded batch.
        return jnp.moveaxis(leaf.reshape(-1, accumulate, *leaf.shape[1:]), 1, 0)

    def add(carry, xs):
        return jax.tree.map(jnp.add, carry, one(*xs)), None

    micro_batches = jax.tree.map(strided, batch)
    keys = jax.random.split(rng, accumulate)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], micro_batches), rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (micro_batches, keys))[0]


def summed_scalars(tree: PyTree, axis_name: str) -> PyTree:
    """A tree of scalars summed over devices, those of a type in one exchange: each exchange waits for all devices."""
    leaves, structure = jax.tree.flatten(tree)
    summed = dict.fromkeys(range(len(leaves)))
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        own = [index for index, leaf in enumerate(leaves) if leaf.dtype == dtype]
        summed |= zip(own, jax.lax.psum(jnp.stack([leaves[index] for index in own]), axis_name), strict=True)
    return jax.tree.unflatten(structure, summed.values())
