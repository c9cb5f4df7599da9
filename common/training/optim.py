"""Optimizers and schedules, all from optax."""

import dataclasses
import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from common.bounds import NotNegative, Positive, Probability, Rate, check_numbers
from common.types import PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up and decay. Defaults are those of the RetSTA paper and of Hugging Face's trainer."""

    optimizer: Literal["adamw", "adam", "amsgrad"] = "adamw"  # except for adamw, weight decay is L2 on everything
    learning_rate: NotNegative = 3e-5  # at the end of the warm-up
    schedule: Literal["constant", "linear", "cosine"] = "cosine"  # after the warm-up, down to 0
    warmup_ratio: Probability = 0.03  # share of all steps over which the learning rate rises from 0
    weight_decay: NotNegative = 0.0  # adamw: decoupled; on matrices only, never on biases and norms
    clip_norm: NotNegative = 1.0  # largest global norm of the gradient; 0 turns clipping off
    clip_value: NotNegative = 0.0  # largest absolute value of a gradient's entry; 0 turns clipping off
    b1: Rate = 0.9
    b2: Rate = 0.999
    eps: Positive = 1e-8
    average: Rate = 0.0  # decay of a moving average of the weights, which is evaluated and exported; 0: none


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up over ceil(warmup_ratio x total), then the named decay to 0."""
    check_numbers(config, "optim.")
    warmup = -int(-config.warmup_ratio * total_steps // 1)
    rest = max(total_steps - warmup, 1)
    decay = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    }[config.schedule]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), decay], [warmup])


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping of the gradient, by global norm and by value, then the optimizer under the schedule."""
    clips = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity(),
        optax.clip(config.clip_value) if config.clip_value > 0 else optax.identity(),
    ]
    schedule = make_schedule(config, total_steps)
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.optimizer == "adamw":
        adamw = optax.adamw(schedule, **moments, weight_decay=config.weight_decay, mask=decayed)
        return optax.chain(*clips, adamw)
    scale = optax.scale_by_adam if config.optimizer == "adam" else optax.scale_by_amsgrad
    regularised = optax.add_decayed_weights(config.weight_decay)  # before the moments: an L2 penalty, as in PyTorch
    return optax.chain(*clips, regularised, scale(**moments), optax.scale_by_learning_rate(schedule))


class Averaged(NamedTuple):
    """State of `with_average`: that of the optimizer, and the average in float32 after so many updates."""

    inner: PyTree
    average: PyTree
    updates: Int[Array, ""]


def with_average(tx: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """`tx`, which also keeps an exponential moving average of the weights (Polyak averaging); as it is with decay 0.

    The average begins with the initial weights, and its decay rises from 0.1 as (1 + t) / (10 + t), so that a short run
    does not end with an average of its beginning.
    """
    if not decay:
        return tx

    def init(params: PyTree) -> Averaged:
        copies = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return Averaged(tx.init(params), copies, jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Averaged, params: PyTree = None) -> tuple[PyTree, Averaged]:
        updates, inner = tx.update(updates, state.inner, params)
        now = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        average = jax.tree.map(
            lambda mean, leaf: now * mean + (1 - now) * leaf.astype(jnp.float32),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, Averaged(inner, average, state.updates + 1)

    return optax.GradientTransformation(init, update)


def averaged(state: TrainState) -> TrainState:
    """The state with its average of the weights as what is trained, if it has one."""
    if not isinstance(state.opt_state, Averaged):
        return state
    average = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.opt_state.average, state.trainable)
    return state.replace(trainable=average)


def decayed(tree: PyTree) -> PyTree:
    """True on the leaves that weight decay applies to: matrices, by name because stacking adds an axis to vectors."""

    def is_matrix(path, _) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return not re.search(r"bias|scale|norm", name)

    return jax.tree_util.tree_map_with_path(is_matrix, tree)
