"""Workarounds for XLA on CPUs: other forms of a few operations, with the same values and gradients.

Models are plain JAX, which is best on GPUs and TPUs. Where XLA for CPUs is slow, a model checks `on_cpu` and calls a
form from this module; programs for other platforms contain none of them.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from common.types import PyTree

UNSTACKED = "unstacked"  # the name of layers apart, beside the collections of a model
BLOCK = 128  # values whose largest is looked for at a time


def platform() -> str:
    """The platform that a program is traced for: that of the current mesh, which may not be of this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_cpu() -> bool:
    """Whether a program is traced for CPUs: the one switch of this module."""
    return platform() == "cpu"


@jax.custom_vjp
def matmul(x: Float[Array, "... I"], weights: Float[Array, "I O"]) -> Float[Array, "... O"]:
    """x @ weights, with a gradient of the weights that is formed as x^T g.

    JAX's own rule forms (g^T x)^T. XLA for CPUs then fuses the transposition of g into whatever computed it and walks
    memory in strides, which made a LoRA step more than twice as slow.
    """
    return x @ weights


def _matmul_forward(x, weights):
    return x @ weights, (x, weights)


def _matmul_backward(saved, gradient):
    x, weights = saved
    flat_x, flat_gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ weights.T, flat_x.T @ flat_gradient


matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul_few_rows(
    x: Float[Array, "... I"], transposed: Float[Array, "O I"], dtype: DTypeLike | None = None
) -> Float[Array, "... O"]:
    """x @ transposed.T for a handful of rows, as in decoding; see `small_batch_matmul`."""
    columns = small_batch_matmul(transposed, x.reshape(-1, x.shape[-1]), dtype)
    return columns.T.reshape(*x.shape[:-1], transposed.shape[0])


def small_batch_matmul(
    weights: Float[Array, "O I"], rows: Float[Array, "N I"], dtype: DTypeLike | None = None
) -> Float[Array, "O N"]:
    """weights @ rows.T where N is small.

    XLA for CPUs copies the right factor into another order at each product. With the weights there, that takes up to
    as long as the product itself. The barrier keeps XLA from changing the order back.
    """
    return jax.lax.optimization_barrier(jnp.einsum("oi,ni->on", weights, rows, preferred_element_type=dtype))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function of x, by erf as in PyTorch.

    `jax.nn.gelu` takes erfc, which is 2.5 times as slow.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def argmax(values: Float[Array, "V N"]) -> Int[Array, " N"]:
    """The first index of each column's largest value: its block first, as XLA for CPUs finds an index one by one."""
    if padding := -values.shape[0] % BLOCK:
        values = jnp.pad(values, ((0, padding), (0, 0)), constant_values=-jnp.inf)
    blocks = values.reshape(-1, BLOCK, values.shape[1])
    block = jnp.argmax(blocks.max(axis=1), axis=0)
    within = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
    return block * BLOCK + jnp.argmax(within, axis=0)


@jax.custom_vjp
def convolve(x: Float[Array, "B H W I"], kernel: Float[Array, "size size I O"]) -> Float[Array, "B H W O"]:
    """A convolution of odd size at stride 1, whose gradient of `x` is another one, with the kernel turned round.

    In JAX's own rule the swap of the kernel's channels stays inside the convolution. XLA for CPUs has no fast path for
    that where kernels are stacked over blocks: it took a third of a training step.
    """
    return _convolve(x, kernel)


def _convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_forward(x, kernel):
    return _convolve(x, kernel), (x, kernel)


def _convolve_backward(saved, gradient):
    x, kernel = saved
    swapped = jax.lax.optimization_barrier(jnp.swapaxes(kernel, 2, 3))
    of_kernel = jax.vjp(functools.partial(_convolve, x), kernel)[1](gradient)[0]
    return _convolve(gradient, swapped[::-1, ::-1]), of_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def after(reads: Float[Array, "B G D"], new: PyTree) -> PyTree:
    """`new`, leaves [... B G K dim], as if it needed the finite `reads`.

    What is written into a cache then needs the result of all reads of it, without which XLA writes into a copy.
    """
    never = (reads[..., 0] > jnp.inf)[..., None, None]
    return jax.tree.map(lambda leaf: jnp.where(never, 0, leaf), new)


def unstack_layers(stack: PyTree) -> list[PyTree]:
    """The layers of a stack [L, ...].

    A loop over a stack copies each layer's slice each time it is read, and so it does with what a backward pass keeps.
    """
    return [jax.tree.map(operator.itemgetter(layer), stack) for layer in range(len(jax.tree.leaves(stack)[0]))]


def decode_unstacked(forward: Callable[..., Any], block: nn.Module, variables: PyTree) -> Callable[..., Any]:
    """`forward`, a `Forward` of the model with these variables, whose decode loop runs over layers apart.

    Keys and values are a list of those of the layers. `block` is one layer; `forward` takes what runs over all of them
    as `layers`. The layers are taken apart before the loop, or were so by `unstacked_variables`.
    """
    layers = variables.get(UNSTACKED) or unstacked_variables(variables)[UNSTACKED]

    def over_layers(x, past, *rest):
        keys_values = []
        for layer, prompt, suffix in zip(layers, past.prompt, past.suffix, strict=True):
            x, own = block.apply(layer, x, past._replace(prompt=prompt, suffix=suffix), *rest)
            keys_values.append(own)
        return x, keys_values

    def unstacked(tokens, positions, segments=None, past=None, embeddings=None):
        if past is not None:
            return forward(tokens, positions, past=past, layers=over_layers)
        hidden, stacked = forward(tokens, positions, segments, embeddings=embeddings)
        return hidden, unstack_layers(stacked)

    return unstacked


def unstacked_variables(variables: PyTree) -> PyTree:
    """What decoding needs of variables: the layers apart, their kernels transposed (`small_batch_matmul`)."""
    stacks = {name: tree["layers"] for name, tree in variables.items() if "layers" in tree}
    layers = [kernels_transposed(layer) for layer in unstack_layers(stacks)]
    params = {name: leaf for name, leaf in variables["params"].items() if name != "layers"}
    return {"params": params, UNSTACKED: layers}


def kernels_transposed(variables: PyTree) -> PyTree:
    """Variables with each kernel [I O] of "params" as [O I] in the collection "transposed", where `Dense` finds it."""
    params = flatten_dict(variables["params"])
    kernels = {path: kernel.T for path, kernel in params.items() if path[-1] == "kernel"}
    others = {path: leaf for path, leaf in params.items() if path[-1] != "kernel"}
    return {**variables, "params": unflatten_dict(others), "transposed": unflatten_dict(kernels)}
