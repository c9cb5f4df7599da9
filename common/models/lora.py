"""LoRA (arXiv:2106.09685) as a tree separate from the base parameters: {path of a dense layer: {"a", "b"}}.

The base tree is never rewritten. A model run as `apply({"params": base, "lora": scaled(lora, config, base)}, ...)` adds
(x A) B scale in each adapted layer; the scale is alpha / rank, or alpha / sqrt(rank) (`rslora`). DoRA
(arXiv:2402.09353) trains the length of each output's weights apart from their direction: {"a", "b", "magnitude"}. PEFT,
whose files `common.models.peft` reads and writes, needs PyTorch.
"""

import dataclasses
import functools
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from common.bounds import Rate, Within, check_numbers
from common.errors import UserError
from common.io.patterns import full_matches
from common.models.quantized import KINDS, STEP, stored_kernel
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
    dora: bool = False  # train magnitude and direction of the weights apart

    @property
    def scale(self) -> float:
        """What A B is multiplied by: alpha / rank, or rank-stabilised (arXiv:2312.03732) alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def init_lora(shapes: PyTree, config: LoraConfig, key: Array, base: PyTree) -> PyTree:
    """Adapters for every dense layer whose name matches `config.targets`: A uniform as in PEFT, B zero; float32.

    `shapes` are those of the model, with a "kernel" for each dense layer; `base` the parameters as they are stored, of
    which DoRA takes the first magnitudes. Raises UserError where nothing matches, and for numbers out of bounds.
    """
    check_numbers(config, "lora.")
    kernels = [path for path in flatten_dict(shapes) if path[-1] == "kernel"]
    names = sorted({path[-2] for path in kernels})
    (held,) = full_matches([config.targets], names, "lora.targets")
    targets = {name for name, holds in zip(names, held, strict=True) if holds}
    adapters: dict[tuple[str, ...], Array] = {}
    for path, kernel in flatten_dict(shapes).items():
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
    norms = weight_norms(base, unflatten_dict(adapters), config) if config.dora else {}
    adapters |= {(*path, "magnitude"): norm for path, norm in norms.items()}
    return unflatten_dict(adapters)


def scaled(lora: PyTree, config: LoraConfig, base: PyTree) -> PyTree:
    """`lora` as the model expects it: the scale multiplied into every B.

    Of DoRA, x (W + A B scale) magnitude / |W + A B scale| is x W "factor" plus x A times what stands for B; the norm
    counts as a constant, as in its section 4.3. A magnitude of zero, in layers that an adapter leaves out, stands for
    that of W.
    """
    leaves = {path: leaf * config.scale if path[-1] == "b" else leaf for path, leaf in flatten_dict(lora).items()}
    for path, norm in (weight_norms(base, lora, config) if config.dora else {}).items():
        magnitude = leaves.pop((*path, "magnitude"))
        factor = jnp.where(magnitude == 0, 1.0, magnitude / norm)
        leaves[(*path, "factor")] = factor
        leaves[(*path, "b")] *= factor[:, None]
    return unflatten_dict(leaves)


@functools.partial(jax.jit, static_argnames="config")
def weight_norms(base: PyTree, lora: PyTree, config: LoraConfig) -> dict[tuple[str, ...], Float[Array, "L O"]]:
    """The Euclidean norm of the weights W + A B scale of each output, by the path of the layer, in float32."""
    stored, adapters = flatten_dict(base), flatten_dict(lora)

    def norms(layer: tuple[dict[str, Array], Array, Array]) -> Float[Array, " O"]:
        weights, a, b = layer
        return jnp.linalg.norm(stored_kernel(weights, jnp.float32) + a @ b * config.scale, axis=0)

    found = {}
    for path in sorted({path[:-1] for path in adapters}):
        weights = {name: stored[(*path, name)] for name in (*KINDS, STEP, "kernel") if (*path, name) in stored}
        # One layer at a time: all of them in float32 would be twice the model.
        found[path] = jax.lax.map(norms, (weights, adapters[(*path, "a")], adapters[(*path, "b")]))
    return jax.lax.stop_gradient(found)


def merge(base: PyTree, lora: PyTree, config: LoraConfig) -> PyTree:
    """A base tree with the adapters in its weights, computed in float32, in the dtype of W."""
    merged, adapters = flatten_dict(base), flatten_dict(scaled(lora, config, base))
    for path in {path[:-1] for path in adapters}:
        own = {name: adapters[(*path, name)] for name in ("a", "b", "factor") if (*path, name) in adapters}
        merged[(*path, "kernel")] = _merged_kernel(merged[(*path, "kernel")], own)
    return unflatten_dict(merged)


@jax.jit
def _merged_kernel(kernel: Float[Array, "L I O"], adapter: dict[str, Array]) -> Float[Array, "L I O"]:
    def one(layer: tuple[Array, dict[str, Array]]) -> Array:
        own, adapter = layer
        return (own.astype(jnp.float32) * adapter.get("factor", 1.0) + adapter["a"] @ adapter["b"]).astype(own.dtype)

    # One layer at a time: all of them in float32, with what is added, would be more than a training keeps.
    return jax.lax.map(one, (kernel, adapter))
