"""Adapters of decoders of all families in the layout of PEFT, including published matrices with several projections.

PEFT adapts such a matrix whole: GLM's gate and up, or Baichuan's q, k and v, each with an adapter of its own here. Side
by side, their A make one A, and their B one B with zeros off its diagonal; the other way round, they share one A.
"""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from common.errors import UserError
from common.models.families import check_trainable, shared_features
from common.models.lora import LoraConfig
from common.models.peft import WHOLE, load_peft, save_peft
from common.models.qwen2 import Qwen2Config
from common.types import PyTree


def save_adapter(directory: str | Path, config: Qwen2Config, lora: PyTree, own: LoraConfig, base_name: str) -> None:
    """Write `lora` (not scaled) as an adapter that PEFT loads onto the model `base_name`. Raises UserError."""
    check_adapters(config, own)
    joined, counts = _join(config, lora)
    save_peft(directory, joined, own, base_name, counts=counts)


def check_adapters(config: Qwen2Config, own: LoraConfig) -> None:
    """Raise UserError for adapters that PEFT has no layout for in the family."""
    check_trainable(config, "lora")
    for matrix, features in shared_features(config).items() if own.dora else ():
        adapted = [name for name in features if re.fullmatch(own.targets, name)]
        if 0 < len(adapted) < len(features):
            raise UserError(
                f"lora.dora: {matrix} of a model of type {config.model_type} holds {', '.join(features)}, whose "
                f"magnitudes PEFT trains together; lora.targets matches only {', '.join(adapted)}: match all or none"
            )


def load_adapter(directory: str | Path, config: Qwen2Config, base: PyTree) -> tuple[LoraConfig, PyTree, PyTree]:
    """`load_peft` for the decoder `base` of any family: config, adapters, and the base to run them with."""
    check_trainable(config, "lora")
    features = shared_features(config)
    own, lora, changed = load_peft(directory, _joined_shapes(config, base))
    adapters = {}
    for path, leaf in flatten_dict(lora).items():
        *module, matrix, side = path
        first = 0
        for name, size in features.get(matrix, {matrix: leaf.shape[-1]}).items():
            adapters[(*module, name, side)] = leaf if side == "a" else leaf[..., first : first + size]
            first += size
    targets = "|".join(sorted({path[-2] for path in adapters}))
    saved = {name: changed[name] for name in set(WHOLE.values()) & changed.keys()}
    return dataclasses.replace(own, targets=targets), unflatten_dict(adapters), {**base, **saved}


def _join(config: Qwen2Config, lora: PyTree) -> tuple[PyTree, dict[str, int]]:
    """`lora` by published matrices, and how many adapters are in each that holds several."""
    leaves, counts = flatten_dict(lora), {}
    for matrix, features in shared_features(config).items():
        modules = {path[:-2] for path in leaves if path[-2] in features}
        for module in modules:
            lengths = [leaves.pop((*module, name, "magnitude"), None) for name in features]
            if lengths[0] is not None:
                leaves[(*module, matrix, "magnitude")] = jnp.concatenate(lengths, axis=-1)
            sides = {name: [leaves.pop((*module, name, side), None) for side in "ab"] for name in features}
            adapted = {name: pair for name, pair in sides.items() if pair[0] is not None}
            rows = [
                jnp.concatenate(
                    [
                        b if name == other else jnp.zeros((*b.shape[:-1], features[other]), b.dtype)
                        for other in features
                    ],
                    axis=-1,
                )
                for name, (_, b) in adapted.items()
            ]
            leaves[(*module, matrix, "a")] = jnp.concatenate([a for a, _ in adapted.values()], axis=-1)
            leaves[(*module, matrix, "b")] = jnp.concatenate(rows, axis=-2)
            counts[matrix] = len(adapted)
    return unflatten_dict(leaves), counts


def _joined_shapes(config: Qwen2Config, base: PyTree) -> PyTree:
    """`base` with the shapes of published matrices in place of the kernels that they hold."""
    leaves = flatten_dict(base)
    for matrix, features in shared_features(config).items():
        for path in [path for path in leaves if path[-2:] == (next(iter(features)), "kernel")]:
            kernels = [leaves.pop((*path[:-2], name, "kernel")) for name in features]
            shape = (*kernels[0].shape[:-1], sum(features.values()))
            leaves[(*path[:-2], matrix, "kernel")] = jax.ShapeDtypeStruct(shape, kernels[0].dtype)
    return unflatten_dict(leaves)
