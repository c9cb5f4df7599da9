"""Layers shared by all models: a dense layer that takes a LoRA adapter, RMS normalisation, rotary positions.

A LoRA adapter is a variable collection of its own (`lora`) that mirrors the paths of the dense layers it adapts.
`Dense` adds it where it finds one, so a model runs with any subset of its layers adapted, or with none.
"""

import dataclasses
import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from common.models import cpu_ops
from common.models.cpu_ops import on_cpu
from common.models.quantized import STEP, from_nf4
from common.types import PyTree


class Dense(nn.Module):
    """y = x W + b, plus (dropout(x) A) B where the `lora` collection holds `a` and `b` for this path.

    W may be in 8 or 4 bits (`common.models.quantized`). The LoRA scale is multiplied into `b` before `apply`
    (`common.models.lora.scaled`), so the model does not need to know it; of DoRA there is a `factor` of x W for each
    output. Dropout is active exactly when `apply` is
    given a "dropout" random key.
    """

    features: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    lora_dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        x = x.astype(self.dtype)
        if self.has_variable("transposed", "kernel"):  # on a CPU, in decoding
            y = cpu_ops.matmul_few_rows(x, self.get_variable("transposed", "kernel").astype(self.dtype))
        elif self.has_variable("params", "int8"):
            steps: Array = self.get_variable("params", STEP)
            y = (matmul(x, self.get_variable("params", "int8").astype(self.dtype)) * steps[0]).astype(self.dtype)
        elif self.has_variable("params", "nf4"):
            packed: Array = self.get_variable("params", "nf4")
            y = matmul(x, from_nf4(packed, self.get_variable("params", STEP), self.dtype))
        else:
            kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features), self.param_dtype)
            y = matmul(x, kernel.astype(self.dtype))
        if self.has_variable("lora", "factor"):
            y = y * self.get_variable("lora", "factor").astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        if self.has_variable("lora", "a"):
            a: Array = self.get_variable("lora", "a").astype(self.dtype)
            b: Array = self.get_variable("lora", "b").astype(self.dtype)
            if self.lora_dropout > 0 and self.has_rng("dropout"):
                x = dropout(x, self.lora_dropout, self.make_rng("dropout"))
            y = y + matmul(matmul(x, a), b)
        return y


def dropout(x: Float[Array, "..."], rate: float, key: Array) -> Float[Array, "..."]:
    """x / (1 - rate) where kept, 0 with probability `rate`.

    The mask hashes the index of each element with two words of `key` (two rounds of the 32-bit finalizer "lowbias32").
    JAX's own generator is of cryptographic quality: it took 20 times as long on a CPU, and most of the time in which a
    7B LoRA step is compiled for a TPU. The mask does not depend on sharding.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    kept = hash_words(hash_words(index ^ words[0]) + words[1]) >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def hash_words(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The 32-bit finalizer "lowbias32": a bijection of words that spreads each input bit over all output bits.

    Of an array of NumPy or of JAX, the same.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def matmul(x: Float[Array, "... I"], weights: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """x @ weights."""
    return cpu_ops.matmul(x, weights) if on_cpu() else x @ weights


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function of x, not its approximation by tanh."""
    return cpu_ops.gelu(x) if on_cpu() else jax.nn.gelu(x, approximate=False)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32 (Qwen2)."""

    epsilon: float = 1e-6
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(x.dtype) * scale.astype(x.dtype)


def random_params(shapes: PyTree, key: Array, by_fan_in: bool = False) -> PyTree:
    """Random parameters of these shapes (from `jax.eval_shape` of an `init`), for training from scratch.

    Scales are 1 and biases 0; convolutions (at least four axes) are normal with variance 2 / fan-in, other weights
    normal with 0.02, or matrices (`by_fan_in`) with variance 1 / fan-in, which learns sooner where models are small.
    All come from one draw: XLA for CPUs takes seconds to compile one, and there are a hundred leaves.
    """
    return jax.jit(functools.partial(_drawn, shapes, by_fan_in))(key)


def _drawn(shapes: PyTree, by_fan_in: bool, key: Array) -> PyTree:
    leaves = flatten_dict(shapes, sep="/")
    drawn = {path: leaf.size for path, leaf in leaves.items() if not path.endswith(("scale", "bias"))}
    numbers = jnp.split(jax.random.normal(key, (sum(drawn.values()),)), np.cumsum([*drawn.values()])[:-1])
    params = {path: jnp.full(leaf.shape, path.endswith("scale"), leaf.dtype) for path, leaf in leaves.items()}
    for path, values in zip(drawn, numbers, strict=True):
        shape = leaves[path].shape
        spread = 0.02
        if len(shape) >= 4:
            spread = math.sqrt(2 / math.prod(shape[-4:-1]))
        elif by_fan_in and len(shape) >= 2:
            spread = math.sqrt(1 / shape[-2])
        params[path] = (values * spread).reshape(shape).astype(leaves[path].dtype)
    return unflatten_dict(params, sep="/")


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Rotary frequencies for longer contexts than those of the training; the default leaves them as they are.

    Frequencies are divided by `factor`; all of them, or with `original`, the number of positions in training, those
    that turn fewer than `slow` times within it, none that turn more than `fast` times, and those between in part: by
    their index (YaRN, arXiv:2309.00071, section 3.2) or by their turns (Llama 3.1). Cosine and sine are multiplied by
    `amplitude`.
    """

    factor: float = 1.0
    original: int = 0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True  # ends of the range between are whole frequencies
    amplitude: float = 1.0
    ramp: Literal["index", "turns"] = "index"

    def frequencies(self, head_dim: int, theta: float) -> Float[Array, " half"]:
        """Turn of each pair of a head from one position to the next, in radians."""
        frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
        if self.factor == 1:
            return frequencies
        if not self.original:
            return frequencies / self.factor
        if self.ramp == "turns":
            turns = frequencies * (self.original / (2 * math.pi))
            kept = jnp.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
            return frequencies * kept + frequencies / self.factor * (1 - kept)

        def dimension(turns: float) -> float:
            return head_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        start, end = dimension(self.fast), dimension(self.slow)
        if self.truncate:
            start, end = math.floor(start), math.ceil(end)
        start, end = max(start, 0), min(end, head_dim - 1)
        divided = jnp.clip((jnp.arange(head_dim // 2) - start) / (end - start or 1e-3), 0, 1)
        return frequencies * (1 - divided) + frequencies / self.factor * divided


def rotary_angles(
    positions: Int[Array, "B S"] | Int[Array, "3 B S"],
    head_dim: int,
    theta: float,
    sections: tuple[int, ...] = (),
    scaling: RotaryScaling = RotaryScaling(),
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """Cosine and sine of position x frequency, in float32 (RoFormer, Eq. 15).

    Positions [3 B S] count time, height and width; `sections` says how many frequencies, from the highest on, turn by
    each (M-RoPE, arXiv:2409.12191, section 2.1). Three equal positions give what [B S] gives.
    """
    frequencies = scaling.frequencies(head_dim, theta)
    of_frequency = positions[..., None]
    if positions.ndim == 3:
        of_frequency = jnp.moveaxis(positions, 0, -1)[..., np.repeat(np.arange(len(sections)) % 3, sections)]
    angles = of_frequency.astype(jnp.float32) * frequencies
    return jnp.cos(angles) * scaling.amplitude, jnp.sin(angles) * scaling.amplitude


def rotate(
    x: Float[Array, "B S heads dim"],
    cos: Float[Array, "#B S half"],
    sin: Float[Array, "#B S half"],
    pairs: Literal["halves", "adjacent"] = "halves",
) -> Float[Array, "B S heads dim"]:
    """Rotary position embedding of the first 2 half dimensions of each head; the rest of them passes as it is.

    Pairs are (i, i + half) in Llama and Qwen2, (2 i, 2 i + 1) in GLM.
    """
    dims = 2 * cos.shape[-1]
    if dims < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :dims], cos, sin, pairs), x[..., dims:]], axis=-1)
    wide = x.astype(jnp.float32)
    first, second = jnp.split(wide, 2, axis=-1) if pairs == "halves" else (wide[..., ::2], wide[..., 1::2])
    cos, sin = cos[..., None, :], sin[..., None, :]
    both = [first * cos - second * sin, second * cos + first * sin]
    rotated = jnp.concatenate(both, axis=-1) if pairs == "halves" else jnp.stack(both, axis=-1).reshape(x.shape)
    return rotated.astype(x.dtype)


def constrain(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
    """Ask for a sharding of `x` under the current mesh (`jax.set_mesh`); without such a mesh, `x` itself."""
    mesh = jax.sharding.get_abstract_mesh()
    named = {name for entry in spec if entry for name in ([entry] if isinstance(entry, str) else entry)}
    if mesh.empty or not named <= set(mesh.axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


BATCH_AXES = ("data", "fsdp")  # mesh axes that split the rows of a batch
