"""Optimizers and schedules, all from optax."""

import dataclasses
import re
from typing import Literal

import jax
import optax

from common.bounds import NotNegative, Positive, Probability, Rate, check_numbers
from common.types import PyTree


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


def decayed(tree: PyTree) -> PyTree:
    """True on the leaves that weight decay applies to: matrices, by name because stacking adds an axis to vectors."""

    def is_matrix(path, _) -> bool:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return not re.search(r"bias|scale|norm", name)

    return jax.tree_util.tree_map_with_path(is_matrix, tree)
