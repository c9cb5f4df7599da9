"""Shapes of what a preset of RetSTA or DEER trains and keeps frozen, as they are stored."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from common.models.lora import init_lora
from common.models.quantized import WIDTH, quantized, stored_as
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_weights import param_shapes
from common.training.flops import matrix_parameters
from common.types import PyTree
from deer_jax.config import ModelConfig, RunConfig
from deer_jax.vision_policy import split_params
from retsta_jax.config import RetstaConfig


def parameters_of(config: RetstaConfig, sizes: Qwen2Config) -> tuple[Any, Any, Any]:
    """Shapes of the model, of what is trained, and of what is frozen."""
    # Shapes do not depend on the attention; two tokens, on which parameters are shaped, are too few for splash.
    base = param_shapes(dataclasses.replace(sizes, attention="xla"))
    if config.model.tuning == "lora":
        return base, adapter_shapes(config, base), {"params": frozen_shapes(config, base)}
    return base, base, {}


def adapter_shapes(config: RetstaConfig, base: PyTree) -> PyTree:
    """Shapes of what is trained on a frozen base of these shapes."""
    start = functools.partial(init_lora, base, config.lora, jax.random.key(0))
    return jax.eval_shape(start, frozen_shapes(config, base))


def frozen_shapes(config: RetstaConfig, base: PyTree) -> PyTree:
    """Shapes of a frozen base as it is stored."""
    bits = stored_as(config.model.param_dtype)[1]
    return base if bits is None else jax.eval_shape(lambda tree: quantized(tree, bits), base)


def layer_width(config: RetstaConfig, sizes: Qwen2Config) -> float:
    """Bytes of a weight of a layer."""
    stored = config.model.param_dtype if config.model.tuning == "lora" else "float32"
    return WIDTH.get(stored) or jnp.dtype(sizes.param_dtype).itemsize


def study_params(model: ModelConfig, base: PyTree) -> PyTree:
    """Shapes of a Qwen2.5-VL, given those of its parameters, as DEER stores it before anything is trained."""
    stored, bits = ("float32", None) if model.tuning == "full" else stored_as(model.param_dtype)
    params = _with_dtype(base, stored)
    if bits is None:
        return params
    return params | {"language": jax.eval_shape(lambda tree: quantized(tree, bits), params["language"])}


def study_trees(config: RunConfig, base: PyTree) -> tuple[PyTree, PyTree]:
    """Shapes of what a DEER preset trains and of what it keeps frozen."""
    trainable, frozen = split_params(study_params(config.model, base), config.model.tuning)
    if config.model.tuning == "lora":
        start = functools.partial(init_lora, base["language"], config.lora, jax.random.key(0))
        return {"lora": jax.eval_shape(start, frozen["language"])}, frozen
    return _with_dtype(trainable, "float32"), frozen


def part_bytes(config: RunConfig, base: PyTree) -> dict[str, float]:
    """Bytes that a pass of DEER reads of each part: integers as they are stored, floats as they are computed with."""
    width = jnp.dtype(config.model.dtype).itemsize
    trainable, frozen = study_trees(config, base)

    def read(leaf: Any) -> int:
        return leaf.size * (width if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype.itemsize)

    return {name: float(sum(map(read, jax.tree.leaves(tree)))) for name, tree in {**frozen, **trainable}.items()}


def decoder_bytes(language: Qwen2Config, stored: str, dtype: DTypeLike) -> float:
    """Bytes of the matrices that every token meets: of layers as `stored` in 8 or 4 bits, of all else in `dtype`."""
    width = jnp.dtype(dtype).itemsize
    head = language.vocab_size * language.hidden_size
    return (matrix_parameters(language) - head) * WIDTH.get(stored, width) + head * width


def _with_dtype(tree: PyTree, dtype: str) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)
