"""LoRA (arXiv:2106.09685) as a tree separate from the base parameters: {path of a dense layer: {"a", "b"}}.

The base tree is never rewritten. A model run as `apply({"params": base, "lora": scaled(lora, config)}, ...)` adds
(x A) B scale in each adapted layer; the scale is alpha / rank, or alpha / sqrt(rank) (`rslora`). PEFT, whose files
`common.models.peft` reads and writes, needs PyTorch.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from common.bounds import Rate, Within, check_numbers
from common.errors import UserError
from common.io.patterns import full_matches
from common.types import PyTree

RANK = Within(1, 1 << 16)
ALPHA = Within(0, 1e9, above=True)
Rank = Annotated[int, RANK]
Alpha = Annotated[float, ALPHA]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and targets of the adapters. All linear projections of the decoder by default."""

    rank: Rank = 16
    alpha: Alpha = 32.0
    dropout: Rate = 0.05
    targets: str = r"(q|k|v|o|gate|up|down)_proj"  # regular expression that a layer's name must match whole
    rslora: bool = False  # scale alpha / sqrt(rank), so that the rank does not change the rate of learning

    @property
    def scale(self) -> float:
        """What A B is multiplied by: alpha / rank, or rank-stabilised (arXiv:2312.03732) alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def init_lora(base: PyTree, config: LoraConfig, key: Array) -> PyTree:
    """Adapters for every dense layer whose name matches `config.targets`: A uniform as in PEFT, B zero; float32.

    `base` may hold arrays or shapes (`jax.eval_shape`). Raises UserError where nothing matches, and for
    numbers out of bounds.
    """
    check_numbers(config, "lora.")
    kernels = [path for path in flatten_dict(base) if path[-1] == "kernel"]
    names = sorted({path[-2] for path in kernels})
    (held,) = full_matches([config.targets], names, "lora.targets")
    targets = {name for name, holds in zip(names, held, strict=True) if holds}
    adapters: dict[tuple[str, ...], Array] = {}
    for path, kernel in flatten_dict(base).items():
        if path[-1] != "kernel" or path[-2] not in targets:
            continue
        *stack, width, features = kernel.shape
        bound = width**-0.5  # kaiming_uniform(a=sqrt(5)), PEFT's initialisation of A
        draw = jax.random.uniform(
            jax.random.fold_in(key, len(adapters)), (*stack, width, config.rank), jnp.float32, -bound, bound
        )
        adapters[(*path[:-1], "a")] = draw
        adapters[(*path[:-1], "b")] = jnp.zeros((*stack, config.rank, features), jnp.float32)
    if not adapters:
        raise UserError(f"lora.targets: {config.targets!r} matches no dense layer; the model has {', '.join(names)}")
    return unflatten_dict(adapters)


def scaled(lora: PyTree, config: LoraConfig) -> PyTree:
    """`lora` with the scale multiplied into every B, as the model expects it."""
    return unflatten_dict(
        {path: leaf * config.scale if path[-1] == "b" else leaf for path, leaf in flatten_dict(lora).items()}
    )


def merge(base: PyTree, lora: PyTree, config: LoraConfig) -> PyTree:
    """A base tree with the adapters added in: W + A B scale, computed in float32, in the dtype of W."""
    merged, adapters = flatten_dict(base), flatten_dict(lora)
    for path in {path[:-1] for path in adapters}:
        kernel = merged[(*path, "kernel")]
        update = (adapters[(*path, "a")] @ adapters[(*path, "b")]) * config.scale
        merged[(*path, "kernel")] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(merged)
