"""Shapes of what a RetSTA preset trains and keeps frozen, as they are stored."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from common.models.lora import init_lora
from common.models.quantized import WIDTH, quantized, stored_as
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_weights import param_shapes
from common.types import PyTree
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
