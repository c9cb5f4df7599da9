"""LoRA adapters in the layout of the PEFT library (`adapter_config.json`, `adapter_model.safetensors`), in and out.

PEFT keeps lora_A as [rank, in] and lora_B as [out, rank] of every layer; ours are [L, in, rank] and [L, rank, out].
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from common.errors import UserError
from common.lora import LoraConfig
from common.types import PyTree
from common.weights import (
    Published,
    load_tree,
    open_tensors,
    published_tensors,
    read_json,
    write_json,
    write_tensors,
    written_whole,
)

PREFIX = "base_model.model."
# Entries of adapter_config.json that do not change what the adapter computes.
NEUTRAL = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "bias", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core", "qalora_group_size"),
        *("loftq_config", "runtime_config"),
    )
)


def load_peft(directory: str | Path, base: PyTree) -> tuple[LoraConfig, PyTree]:
    """Config and adapters (float32) of a PEFT directory, for a decoder whose parameters or shapes are `base`.

    An adapter on some of the layers has zeros, which training leaves zero, in the others. Raises UserError for what
    is more than plain LoRA on the decoder's linear layers, and as `load_tree` does.
    """
    file = Path(directory) / "adapter_config.json"
    published = read_json(file)
    _refuse_variants(published, file)
    rank = published.get("r", 8)
    shapes, names = {}, {}
    for path, kernel in flatten_dict(base).items():
        if path[-1] != "kernel":
            continue
        layers, width, features = kernel.shape
        modules = [_published_module(path, layer) for layer in range(layers)]
        adapted = [_is_target(module, layer, published, file) for layer, module in enumerate(modules)]
        if not any(adapted):
            continue
        for ours, theirs, shape in (("a", "lora_A", (width, rank)), ("b", "lora_B", (rank, features))):
            shapes[(*path[:-1], ours)] = jax.ShapeDtypeStruct((layers, *shape), jnp.float32)
            names["/".join((*path[:-1], ours))] = Published(
                tuple(
                    f"{PREFIX}{module}.{theirs}.weight" if used else None
                    for module, used in zip(modules, adapted, strict=True)
                ),
                axes=(1, 0),
                stacked=True,
            )
    if not shapes:
        raise UserError(
            f"{file}: target_modules {published.get('target_modules')!r} match no linear layer of the model"
        )
    projections = sorted({path[-2] for path in shapes})
    config = LoraConfig(
        rank=rank,
        alpha=float(published.get("lora_alpha", 8)),
        dropout=float(published.get("lora_dropout", 0.0)),
        targets="|".join(projections),
    )
    stored = open_tensors(directory, "adapter_model")
    return config, load_tree(stored, unflatten_dict(shapes), names, where=directory)


def save_peft(directory: str | Path, lora: PyTree, config: LoraConfig, base_name: str) -> None:
    """Write `lora` (not scaled) as an adapter that PEFT loads onto the model `base_name`, a path or a name on the hub.

    The directory appears whole or not at all (`common.weights.written_whole`).
    """
    names: dict[str, Published] = {}
    for path, leaf in flatten_dict(lora).items():
        theirs = {"a": "lora_A", "b": "lora_B"}[path[-1]]
        modules = [f"{PREFIX}{_published_module(path, layer)}.{theirs}.weight" for layer in range(leaf.shape[0])]
        names["/".join(path)] = Published(tuple(modules), axes=(1, 0), stacked=True)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({path[-2] for path in flatten_dict(lora)}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    with written_whole(directory) as aside:
        write_tensors(
            aside, published_tensors(lora, names), stem="adapter_model", max_bytes=int(np.iinfo(np.int64).max)
        )
        if jax.process_index() == 0:
            write_json(aside / "adapter_config.json", content)


def _published_module(path: tuple[str, ...], layer: int) -> str:
    """layers/self_attn/q_proj/... of one layer, as PyTorch names the module."""
    return f"model.layers.{layer}." + ".".join(path[1:-1])


def _is_target(module: str, layer: int, published: dict[str, Any], file: Path) -> bool:
    """PEFT's rules (`check_target_module_exists`) for one linear layer of the decoder."""
    if _matches(module, published.get("exclude_modules") or [], file):
        return False
    targets, layers = published.get("target_modules"), published.get("layers_to_transform")
    if targets is None:
        raise UserError(f"{file}: target_modules is missing; expected a list of names, a pattern or 'all-linear'")
    if layers is not None and layer not in ([layers] if isinstance(layers, int) else layers):
        return False
    return targets == "all-linear" or _matches(module, targets, file)


def _matches(module: str, targets: str | list[str], file: Path) -> bool:
    if not isinstance(targets, str):
        return any(module == target or module.endswith(f".{target}") for target in targets)
    try:
        return re.fullmatch(targets, module) is not None
    except re.error as error:
        raise UserError(f"{file}: {targets!r} is no regular expression ({error})") from error


def _refuse_variants(published: dict[str, Any], file: Path) -> None:
    """UserError for everything that plain LoRA cannot express."""
    if published.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {published.get('peft_type')!r}, expected 'LORA'")
    if published.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {published['bias']!r}, expected 'none'")
    rank = published.get("r", 8)
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"{file}: r is {rank!r}, expected a positive whole number")
    start = published.get("init_lora_weights", True)
    if isinstance(start, str) and re.match("pissa|olora|corda|loftq|lora_ga", start):
        raise UserError(
            f"{file}: init_lora_weights {start!r} changes the base weights; save the adapter converted to plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion)"
        )
    for name, value in published.items():
        if value and name not in NEUTRAL and name != "megatron_config":
            raise UserError(f"{file}: {name} = {value!r} is more than plain LoRA, which is all that can be loaded")
