"""LoRA adapters in the layout of the PEFT library (`adapter_config.json`, `adapter_model.safetensors`), in and out.

PEFT keeps lora_A as [rank, in] and lora_B as [out, rank] of every layer; ours are [L, in, rank] and [L, rank, out].
DoRA's magnitudes are [out], ours [L, out].

PEFT finds a module by its in-memory name in transformers. An adapter whose names it does not find is loaded with a
warning and has no effect. The layers of Qwen2 are `model.layers.*` in every version; those of Qwen2.5-VL are
`model.language_model.layers.*` since transformers 4.52, and were `model.layers.*` before.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from common.bounds import RATE
from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.mirror import address_text
from common.io.patterns import full_matches
from common.io.safetensors import (
    Index,
    Published,
    StoredTensor,
    disk_errors,
    load_tree,
    open_tensors,
    published_tensors,
    write_json,
    write_tensors,
)
from common.io.terminal import printable
from common.models.lora import ALPHA, RANK, LoraConfig
from common.models.published import read_entries
from common.types import PyTree

PREFIX = "base_model.model."
Decoder = Literal["model.", "model.language_model."]  # how the names of a decoder's modules begin in memory
TEXT: Decoder = "model."
VISION_LANGUAGE: Decoder = "model.language_model."
ALL_LINEAR = "all-linear"
# The tensors of an adapted layer by the leaves of ours, and their axes.
THEIRS = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
AXES = {"a": (1, 0), "b": (1, 0), "magnitude": None}
# Modules that an adapter may hold whole (`modules_to_save`), by their names in PEFT, and our leaves.
WHOLE = {
    "lm_head": "lm_head",
    **{
        f"{prefix}embed_tokens": "embed_tokens"
        for prefix in ("", TEXT, VISION_LANGUAGE, VISION_LANGUAGE.removeprefix(TEXT))
    },
}
# What an exported adapter says about the programs that load it: README.md beside its weights.
README = """---
library_name: peft
---

LoRA adapter of the {kind}, written by medreport-jax.

Its tensors are named `{prefix}{decoder}layers.*`, as {versions} names the modules in memory.
Tested with transformers 5.23 and peft 0.19. A version whose modules have other names loads the adapter with a
warning about missing or unexpected keys, and without effect: compare an output with the base model's.
"""
KINDS: dict[Decoder, tuple[str, str]] = {
    TEXT: ("language model", "every transformers"),
    VISION_LANGUAGE: ("language model of Qwen2.5-VL", "transformers 4.52 or later"),
}
# What PEFT's and transformers' automatic classes open the base model with.
AUTO_CLASSES: dict[Decoder, dict[str, Any]] = {
    TEXT: {"task_type": "CAUSAL_LM"},
    VISION_LANGUAGE: {
        "task_type": None,
        "auto_mapping": {
            "base_model_class": "Qwen2_5_VLForConditionalGeneration",
            "parent_library": "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        },
    },
}
# Entries of adapter_config.json that are read below, or do not change what the adapter computes.
KNOWN = frozenset(
    (
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "bias", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "init_lora_weights", "megatron_core", "qalora_group_size"),
        *("loftq_config", "runtime_config", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern"),
        "modules_to_save",
    )
)


def load_peft(directory: str | Path, base: PyTree, decoder: Decoder = TEXT) -> tuple[LoraConfig, PyTree, PyTree]:
    """Config and adapters (float32) of a PEFT directory for the decoder `base`, and the base to run them with.

    `decoder` says whose decoder it is; for that of Qwen2.5-VL both its names in memory are read.

    That base is `base`, with an embedding or a head in place of its own where the adapter has saved them whole; it
    may hold shapes. An adapter on some of the layers has zeros, which training leaves zero, in the others, and one of
    a smaller rank than others (`rank_pattern`) beside its own. What differs from the common scale alpha / rank
    (`alpha_pattern`) is multiplied into B. Raises UserError for what is more than LoRA on the decoder's linear layers,
    and as `load_tree` does.
    """
    file = Path(directory) / "adapter_config.json"
    published = read_entries(file).values
    _check(published, file)
    stored = open_tensors(directory, "adapter_model")
    decoder = _decoder_of(stored, decoder, file)
    matches = _matches(published, decoder, base, file)
    ranks = published.get("rank_pattern") or {}
    rank, common_scale = max([_rank(published, matches), *ranks.values()]), _scale(published, matches)
    shapes, names = {}, {}
    for path, kernel in flatten_dict(base).items():
        if path[-1] != "kernel":
            continue
        layers, width, features = kernel.shape
        modules = [_published_module(decoder, path, layer) for layer in range(layers)]
        adapted = [_is_target(module, layer, published, matches) for layer, module in enumerate(modules)]
        if not any(adapted):
            continue
        sides = [("a", (width, rank), 0), ("b", (rank, features), 1)]
        for ours, shape, rank_axis in sides + [("magnitude", (features,), None)] * bool(published.get("use_dora")):
            shapes[(*path[:-1], ours)] = jax.ShapeDtypeStruct((layers, *shape), jnp.float32)
            tensors = tuple(
                f"{PREFIX}{module}.{THEIRS[ours]}" if used else None
                for module, used in zip(modules, adapted, strict=True)
            )
            names["/".join((*path[:-1], ours))] = Published(tensors, AXES[ours], stacked=True)
            for module, tensor in zip(modules, tensors, strict=True):
                if tensor in stored and rank_axis is not None:
                    own_rank, own_scale = _rank(published, matches, module), _scale(published, matches, module)
                    factor = own_scale / common_scale if ours == "b" else 1.0
                    stored[tensor] = _fitted(stored[tensor], rank_axis, own_rank, rank, factor)
    if not shapes:
        raise UserError(
            f"{file}: target_modules {published.get('target_modules')!r} match no linear layer of the model"
        )
    rslora = bool(published.get("use_rslora"))
    config = LoraConfig(
        rank=rank,
        alpha=common_scale * (math.sqrt(rank) if rslora else rank),
        dropout=float(published.get("lora_dropout", 0.0)),
        targets="|".join(sorted({path[-2] for path in shapes})),
        rslora=rslora,
        dora=bool(published.get("use_dora")),
    )
    saved, base = _saved_modules(published, stored, base, decoder, directory)
    others = {name: tensor for name, tensor in stored.items() if name not in saved}
    return config, load_tree(others, unflatten_dict(shapes), names, where=directory), base


def save_peft(
    directory: str | Path,
    lora: PyTree,
    config: LoraConfig,
    base_name: str,
    decoder: Decoder = TEXT,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Write `lora` (not scaled) as an adapter that PEFT loads onto the model `base_name`, a path or a name on the hub.

    `decoder` says whose decoder `lora` is for; `counts` are of adapters that are joined in one module
    (`common.models.adapters`), whose rank is that much larger and whose scale is the same. The directory appears whole
    or not at all (`common.io.exports.atomic_directory`).
    """
    names: dict[str, Published] = {}
    for path, leaf in flatten_dict(lora).items():
        modules = [_published_module(decoder, path, layer) for layer in range(leaf.shape[0])]
        tensors = tuple(f"{PREFIX}{module}.{THEIRS[path[-1]]}" for module in modules)
        names["/".join(path)] = Published(tensors, AXES[path[-1]], stacked=True)
    kind, versions = KINDS[decoder]
    content = {
        "peft_type": "LORA",
        **AUTO_CLASSES[decoder],
        "base_model_name_or_path": address_text(base_name) or base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _targets(lora, decoder),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "rank_pattern": {name: config.rank * count for name, count in (counts or {}).items()},
        "alpha_pattern": {
            name: config.alpha * (math.sqrt(count) if config.rslora else count)
            for name, count in (counts or {}).items()
        },
        "use_rslora": config.rslora,
        "use_dora": config.dora,
    }
    with atomic_directory(directory) as aside:
        write_tensors(
            aside, published_tensors(lora, names), stem="adapter_model", max_bytes=int(np.iinfo(np.int64).max)
        )
        if jax.process_index() == 0:
            write_json(aside / "adapter_config.json", content)
            with disk_errors(aside):
                about = README.format(kind=kind, prefix=PREFIX, decoder=decoder, versions=versions)
                (aside / "README.md").write_text(about, encoding="utf-8")


def _targets(lora: PyTree, decoder: Decoder) -> list[str] | str:
    """`target_modules`: the names of the adapted layers, or a pattern where other modules have such names too."""
    layers = {path[1:-1] for path in flatten_dict(lora)}
    if decoder == TEXT:
        return sorted({path[-1] for path in layers})
    inside = "|".join(sorted(re.escape(".".join(path)) for path in layers))
    return rf"{re.escape(decoder)}layers\.\d+\.({inside})"


def _decoder_of(stored: dict[str, StoredTensor], decoder: Decoder, file: Path) -> Decoder:
    """How the adapter names the modules of `decoder`. Raises UserError where it is for another kind of model."""
    if image := sorted(name for name in stored if ".visual." in name):
        raise UserError(
            f"{file.parent}: holds {image[0]}; expected an adapter of the language model alone, without the image side"
        )
    newer = any(name.startswith(f"{PREFIX}{VISION_LANGUAGE}") for name in stored)
    if newer and decoder == TEXT:
        raise UserError(
            f"{file.parent}: is an adapter of Qwen2.5-VL, but the model is not Qwen2.5-VL; choose the matching one"
        )
    return VISION_LANGUAGE if newer else TEXT


def _saved_modules(
    published: dict[str, Any],
    stored: dict[str, StoredTensor],
    base: PyTree,
    decoder: Decoder,
    directory: str | Path,
) -> tuple[set[str], PyTree]:
    """The tensors of `modules_to_save`, and `base` with them in place of its own."""
    leaves = {WHOLE[module] for module in published.get("modules_to_save") or ()}
    if not leaves:
        return set(), base
    names = {leaf: f"{PREFIX}{decoder if leaf == 'embed_tokens' else ''}{leaf}.weight" for leaf in leaves}
    embedding = base["embed_tokens"]
    saved = load_tree(
        {name: stored[name] for name in names.values() if name in stored},
        {leaf: jax.ShapeDtypeStruct(embedding.shape, embedding.dtype) for leaf in leaves},
        {leaf: Published((name,)) for leaf, name in names.items()},
        where=directory,
    )
    # Of tied weights PEFT replaces one place only: the other keeps the embedding of the base.
    return set(names.values()), {**base, "lm_head": base.get("lm_head", embedding), **saved}


def _fitted(tensor: StoredTensor, rank_axis: int, own_rank: int, rank: int, factor: float) -> StoredTensor:
    """The tensor times `factor`, with zeros from its own rank up to `rank`."""
    if own_rank == rank and factor == 1.0:
        return tensor
    if len(tensor.shape) != 2 or tensor.shape[rank_axis] != own_rank:
        raise UserError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, but adapter_config.json gives its "
            f"module rank {own_rank}; is it the config of another adapter?"
        )
    shape, padding = list(tensor.shape), [(0, 0), (0, 0)]
    shape[rank_axis], padding[rank_axis] = rank, (0, rank - own_rank)

    def read(index: Index) -> np.ndarray:
        return np.pad(tensor.read(()).astype(np.float32) * np.float32(factor), padding)[index]

    return dataclasses.replace(tensor, shape=tuple(shape), read=read)


Matches = Mapping[str, Collection[str]]  # pattern -> the modules that it matches


def _matches(published: dict[str, Any], decoder: Decoder, base: PyTree, file: Path) -> Matches:
    """The modules of `base` that each pattern of an adapter matches, by PEFT's rules. Raises UserError."""
    paths = [(path, kernel.shape[0]) for path, kernel in flatten_dict(base).items() if path[-1] == "kernel"]
    modules = [_published_module(decoder, path, layer) for path, layers in paths for layer in range(layers)]
    given: list[Any] = [published.get("target_modules"), published.get("exclude_modules")]
    patterns = [pattern for pattern in given if isinstance(pattern, str) and pattern != ALL_LINEAR]
    for name in ("rank_pattern", "alpha_pattern"):
        patterns += [_ending(pattern) for pattern in published.get(name) or {}]
    found = full_matches(patterns, modules, str(file))
    return {
        pattern: {module for module, holds in zip(modules, held, strict=True) if holds}
        for pattern, held in zip(patterns, found, strict=True)
    }


def _ending(pattern: str) -> str:
    """A pattern of `rank_pattern` or `alpha_pattern`, which the end of a module's name matches (`get_pattern_key`)."""
    return rf"(.*\.)?({pattern})"


def _rank(published: dict[str, Any], matches: Matches, module: str = "") -> int:
    """Rank of the adapter on a module, or what `rank_pattern` has exceptions from."""
    return _of_pattern(published.get("rank_pattern"), module, matches, published.get("r", 8))


def _scale(published: dict[str, Any], matches: Matches, module: str = "") -> float:
    """alpha / rank of the adapter on a module, or alpha / sqrt(rank) (rank-stabilised, arXiv:2312.03732)."""
    alpha = _of_pattern(published.get("alpha_pattern"), module, matches, published.get("lora_alpha", 8))
    rank = _rank(published, matches, module)
    return alpha / (math.sqrt(rank) if published.get("use_rslora") else rank)


def _of_pattern(patterns: dict[str, Any] | None, module: str, matches: Matches, default: Any) -> Any:
    """The value of the first pattern that the end of the module's name matches."""
    return next((value for pattern, value in (patterns or {}).items() if module in matches[_ending(pattern)]), default)


def _published_module(decoder: Decoder, path: tuple[str, ...], layer: int) -> str:
    """layers/self_attn/q_proj/... of one layer, as PyTorch names the module."""
    return f"{decoder}layers.{layer}." + ".".join(path[1:-1])


def _is_target(module: str, layer: int, published: dict[str, Any], matches: Matches) -> bool:
    """PEFT's rules (`check_target_module_exists`) for one linear layer of the decoder."""
    if _is_named(module, published.get("exclude_modules") or [], matches):
        return False
    layers = published.get("layers_to_transform")
    if layers not in (None, []) and layer not in ([layers] if isinstance(layers, int) else layers):
        return False
    targets = published["target_modules"]
    return targets == ALL_LINEAR or _is_named(module, targets, matches)


def _is_named(module: str, targets: str | list[str], matches: Matches) -> bool:
    if isinstance(targets, str):
        return module in matches[targets]
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _check(published: dict[str, Any], file: Path) -> None:
    """UserError for everything that LoRA on linear layers cannot express, and for values of the wrong kind."""
    if published.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type is {published.get('peft_type')!r}, expected 'LORA'")
    if published.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {published['bias']!r}, expected 'none'")
    for name, (holds, expected) in _kinds(published):
        if not holds:
            raise UserError(f"{file}: {name} is {printable(repr(published.get(name)))}, expected {expected}")
    if "target_modules" not in published:
        raise UserError(f"{file}: target_modules is missing; expected a list of names, a pattern or {ALL_LINEAR!r}")
    start = published.get("init_lora_weights", True)
    if isinstance(start, str) and re.match("pissa|olora|corda|loftq|lora_ga", start):
        raise UserError(
            f"{file}: init_lora_weights {start!r} changes the base weights; save the adapter converted to plain LoRA "
            "(PEFT: path_initial_model_for_weight_conversion)"
        )
    for name, value in published.items():
        if value and name not in KNOWN and name != "megatron_config":
            shown = printable(repr(value), 60)
            raise UserError(f"{file}: {printable(name)} = {shown} is neither LoRA nor DoRA; only those can be loaded")


def _kinds(published: dict[str, Any]) -> Iterator[tuple[str, tuple[bool, str]]]:
    """Whether each entry that is read is of its kind, and what is expected."""
    whole, number = f"a whole number, {RANK}", f"a number, {ALPHA}"
    yield "r", (_is_rank(published.get("r", 8)), whole)
    yield "lora_alpha", (_is_number(published.get("lora_alpha", 8)), number)
    dropout = published.get("lora_dropout", 0.0)
    yield "lora_dropout", (type(dropout) in (int, float) and dropout in RATE, f"a number, {RATE}")
    for name in ("use_rslora", "use_dora"):
        yield name, (type(published.get(name, False)) is bool, "true or false")
    for name, is_kind, kind in (("rank_pattern", _is_rank, whole), ("alpha_pattern", _is_number, number)):
        pattern = published.get(name) or {}
        yield name, (isinstance(pattern, dict) and all(map(is_kind, pattern.values())), f"{kind} for each pattern")
    for name in ("target_modules", "exclude_modules"):
        value = published.get(name)
        value = "" if value in (None, {}) else value
        expected = "a list of names, a pattern or 'all-linear'"
        yield name, (isinstance(value, str) or _are(str, value), expected)
    layers = published.get("layers_to_transform")
    yield "layers_to_transform", (layers is None or type(layers) is int or _are(int, layers), "a list of layers")
    saved = published.get("modules_to_save") or []
    yield "modules_to_save", (_are(str, saved) and set(saved) <= set(WHOLE), "none, or lm_head and embed_tokens")


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _is_rank(value: Any) -> bool:
    return type(value) is int and value in RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value in ALPHA
