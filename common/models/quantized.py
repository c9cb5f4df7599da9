"""Frozen kernels of dense layers in 8 or 4 bits, for LoRA on a base that would not fit otherwise.

`int8` has one step for each output of a layer: the largest absolute weight is 127 steps. `nf4` (QLoRA,
arXiv:2305.14314, appendix E) has blocks of 64 weights of an output, each weight one of 16 quantiles of a normal
distribution times the block's largest absolute weight. Both are read back as they are multiplied; what is computed is
in the model's dtype.
Embeddings, norms and biases stay as they are.

In the tree, {"int8" or "nf4", "step"} stand in place of a layer's "kernel" (`common.models.layers.Dense`).
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int8, UInt8

from common.errors import UserError
from common.types import PyTree

Bits = Literal["int8", "nf4"]
KINDS: tuple[str, ...] = get_args(Bits)
STEP = "step"
BLOCK = 64  # weights of an output that share a step in nf4
WIDTH = {"int8": 1.0, "nf4": 0.5 + 4 / BLOCK}  # bytes of a weight with its share of steps
# The quantiles, as QLoRA's authors publish them (bitsandbytes, `create_normal_map`).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def quantized_leaf(path: str, leaf: Array, bits: Bits) -> dict[str, Array]:
    """What stands in place of a leaf of the layers, by its path: the kernels of dense layers in `bits`, others as is.

    A kernel is [L, I, O]; for `nf4` I must be a multiple of 64.
    """
    *module, name = path.split("/")
    if name != "kernel":
        return {path: leaf}
    values, step = (to_int8 if bits == "int8" else to_nf4)(leaf)
    return {"/".join([*module, bits]): values, "/".join([*module, STEP]): step}


def quantized(params: PyTree, bits: Bits) -> PyTree:
    """Parameters with the kernels of all dense layers in `bits`."""
    leaves = flatten_dict(params, sep="/")
    parts = [quantized_leaf(path, leaf, bits) for path, leaf in leaves.items()]
    return unflatten_dict({path: leaf for part in parts for path, leaf in part.items()}, sep="/")


def to_int8(kernel: Float[Array, "*L I O"]) -> tuple[Int8[Array, "*L I O"], Float[Array, "*L 1 O"]]:
    """A kernel in steps of its outputs, and the steps in float32."""
    wide = kernel.astype(jnp.float32)
    step = jnp.abs(wide).max(-2, keepdims=True) / 127
    return jnp.round(wide / jnp.where(step > 0, step, 1)).astype(jnp.int8), step


def to_nf4(kernel: Float[Array, "*L I O"]) -> tuple[UInt8[Array, "*L half O"], Float[Array, "*L blocks O"]]:
    """A kernel as indices of quantiles, and the steps in float32.

    A byte holds the index of an input in the first half of a block and that of the input half a block further on, so
    that no axis is as short as 2, which TPUs would pad.
    """
    *stack, inputs, outputs = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(*stack, inputs // BLOCK, BLOCK, outputs)
    step = jnp.abs(blocks).max(-2)
    middles = jnp.asarray([(low + high) / 2 for low, high in itertools.pairwise(NF4)], jnp.float32)
    shares = blocks / jnp.where(step > 0, step, 1)[..., None, :]
    first, second = jnp.split(jnp.searchsorted(middles, shares).astype(jnp.uint8), 2, axis=-2)
    return (first * 16 + second).reshape(*stack, inputs // 2, outputs), step


def from_nf4(
    packed: UInt8[Array, "half O"], step: Float[Array, "blocks O"], dtype: jax.typing.DTypeLike
) -> Float[Array, "I O"]:
    """The kernel that `to_nf4` was given, as far as 4 bits tell, in `dtype`."""
    halves = packed.reshape(step.shape[0], BLOCK // 2, -1)
    index = jnp.concatenate([halves >> 4, halves & 15], axis=1)
    # A tree of selections by bit: a gather from a table of 16 is slow on TPUs.
    values: list[Any] = list(NF4)
    for bit in range(4):
        high = (index >> bit) & 1 == 1
        values = [jnp.where(high, right, left) for left, right in zip(values[::2], values[1::2], strict=True)]
    (found,) = values
    return (found * step[:, None]).reshape(-1, step.shape[-1]).astype(dtype)


def stored_kernel(weights: Mapping[str, Array], dtype: jax.typing.DTypeLike) -> Float[Array, "I O"]:
    """The kernel of one dense layer by what is stored of it, {"kernel"} or {"int8" or "nf4", "step"}, in `dtype`."""
    if "nf4" in weights:
        return from_nf4(weights["nf4"], weights[STEP], dtype)
    if "int8" in weights:
        return (weights["int8"] * weights[STEP]).astype(dtype)
    return weights["kernel"].astype(dtype)


def stored_as(param_dtype: str) -> tuple[str, Bits | None]:
    """The dtype of what is stored as numbers, and the bits of the layers' kernels, if they are fewer."""
    return ("bfloat16", cast(Bits, param_dtype)) if param_dtype in KINDS else (param_dtype, None)


def check_blocks(sizes: Mapping[str, int], bits: Bits | None) -> None:
    """Raise UserError where inputs of layers, by name, cannot be cut into blocks of `nf4`."""
    for name, size in sizes.items():
        if bits == "nf4" and size % BLOCK:
            raise UserError(
                f"model.param_dtype nf4: needs layers whose inputs are multiples of {BLOCK}, and the base has {name} "
                f"{size}; choose int8"
            )
