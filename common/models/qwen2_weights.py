"""Decoders in the layout of the Hugging Face hub: `config.json` and safetensors <-> Qwen2Config and parameters.

For Qwen2 and the other families of `common.models.families`, which defines their names.
"""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Sharding

from common.bounds import SHARE, Within
from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.safetensors import (
    SHARD_BYTES,
    Convert,
    NameMap,
    StoredTensor,
    check_full,
    disk_errors,
    load_tree,
    published_tensors,
    widest_dtype,
    write_json,
    write_tensors,
    write_texts,
)
from common.io.text import read_json_object
from common.io.torch_archive import open_model
from common.models.families import (
    FAMILIES,
    check_trainable,
    normalizes_head,
    read_family,
    unit_rows,
    warn_of_rotation,
)
from common.models.layers import RotaryScaling
from common.models.published import POSITIONS, SIZE, WIDTH, Entries
from common.models.quantized import Bits, check_blocks, quantized_leaf
from common.models.qwen2 import Qwen2Config, init_params
from common.types import PyTree

WIDTHS = ("vocab_size", "hidden_size", "intermediate_size")
SIZES = (*WIDTHS, "num_hidden_layers", "num_attention_heads")
NOT_NEGATIVE = Within(0, POSITIONS.most)
# Entries that say how the source was stored, not how an export of full weights is.
LEFT_BEHIND = ("dtype", "rope_scaling", "quantization_config")
# What stands beside the weights of a published model and belongs to an export of its descendants too.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE"),
)


def config_from_directory(directory: str | Path) -> Qwen2Config:
    """The config of a published model of any family, computing in the dtype its weights are stored in.

    Raises UserError for another architecture and for variants that the decoder does not implement. Warns where a
    file's entries contradict what is known of the model.
    """
    published = read_family(directory)
    defaults, fields = FAMILIES[published.values["model_type"]].read(published)
    config = decoder_config(published, defaults, fields)
    warn_of_rotation(published, config)
    return config


def decoder_config(
    published: Entries, defaults: Mapping[str, Any] | None = None, fields: Mapping[str, Any] | None = None
) -> Qwen2Config:
    """The config of the decoder that `published` describes. Raises UserError.

    `defaults` are for entries that are left out, and `fields` for what no entry says, where they are not Qwen2's.
    """
    own: dict[str, Any] = {
        **{"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "mrope_section": (), "partial_rotary_factor": 1.0},
        **(defaults or {}),
    }
    published.choice("hidden_act", ["silu"], "silu")
    given = published.part("rope_scaling").values | published.part("rope_parameters").values
    rope = Entries({"mrope_section": own["mrope_section"] or None, **given}, published.where, "rotary ")
    for name in rope.values:
        if isinstance(rope.values[name], dict):
            raise rope.error(name, "one kind of rotary embedding for all layers")
    widths: dict[str, Any] = {name: published.whole(name, WIDTH) for name in WIDTHS}
    layers, heads = (published.whole(name, SIZE) for name in ("num_hidden_layers", "num_attention_heads"))
    kinds = published.items("layer_types", str)
    if kinds and len(kinds) != layers:
        raise UserError(f"{published.where}: layer_types has {len(kinds)} entries, expected num_hidden_layers {layers}")
    slides = "sliding_attention" in kinds
    if not kinds and published.flag("use_sliding_window") and "sliding_window" not in published.null:
        slides = published.whole("max_window_layers", NOT_NEGATIVE, 28) < layers  # layers before the first that slides
    if slides:
        raise UserError(
            f"{published.where}: use_sliding_window is not implemented; expected full attention in every layer"
        )
    key_value_heads = published.whole("num_key_value_heads", SIZE, own.get("num_key_value_heads", heads))
    if heads % key_value_heads:
        raise UserError(
            f"{published.where}: num_attention_heads {heads} is not a multiple of num_key_value_heads {key_value_heads}"
        )
    if "head_dim" not in {*published.values, *own} and widths["hidden_size"] % heads:
        raise UserError(
            f"{published.where}: hidden_size {widths['hidden_size']} is not a multiple of num_attention_heads {heads}"
        )
    head_dim = published.whole("head_dim", WIDTH, own.get("head_dim", widths["hidden_size"] // heads))
    if head_dim % 2 or heads * head_dim not in WIDTH:
        raise UserError(f"{published.where}: head_dim is {head_dim}, expected an even number, {WIDTH} with all heads")
    partial = (rope if "partial_rotary_factor" in rope else published).number(
        "partial_rotary_factor", SHARE, own["partial_rotary_factor"]
    )
    if own["partial_rotary_factor"] == 1 != partial or int(head_dim * partial) % 2 or not int(head_dim * partial):
        raise UserError(f"{published.where}: partial_rotary_factor is {partial}, which this architecture does not have")
    stored = "dtype" if "dtype" in published else "torch_dtype"
    dtype = published.choice(stored, ["float32", "bfloat16", "float16"], "float32")
    sections = rope.items("mrope_section", int, bounds=SIZE)
    return Qwen2Config(
        **widths,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rotary_dims=int(head_dim * partial) % head_dim,
        rope_theta=(rope if "rope_theta" in rope else published).number("rope_theta", default=own["rope_theta"]),
        mrope_section=tuple(sections),
        rotary_scaling=_rotary_scaling(rope, published),
        rms_norm_eps=published.number("rms_norm_eps", default=own["rms_norm_eps"]),
        tie_word_embeddings=published.flag("tie_word_embeddings"),
        dtype=dtype,
        param_dtype=dtype,
        **(fields or {}),
    )


def max_positions(directory: str | Path) -> int | None:
    """How many positions a published model was trained on; None where it does not say. Raises UserError."""
    published = read_family(directory)
    if "max_position_embeddings" not in published:
        return None
    return published.whole("max_position_embeddings", POSITIONS)


def _rotary_scaling(rope: Entries, published: Entries) -> RotaryScaling:
    """What transformers calls linear, YaRN and Llama 3's scaling. Raises UserError for other kinds."""
    named = "rope_type" if "rope_type" in rope or "type" not in rope else "type"
    kind = rope.choice(named, ["default", "linear", "yarn", "llama3", "mrope"], "default")
    if kind == "default" or (kind == "mrope" and "mrope_section" in rope):
        return RotaryScaling()
    if kind == "mrope" or "mrope_section" in rope:
        raise rope.error(named, "'default', or 'mrope' with mrope_section")
    factor = rope.number("factor")
    if kind == "linear":
        return RotaryScaling(factor)
    positions = "original_max_position_embeddings"
    trained = (
        rope.whole(positions, POSITIONS) if positions in rope else published.whole("max_position_embeddings", POSITIONS)
    )
    if kind == "llama3":
        slow, fast = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if slow >= fast:
            raise rope.error("low_freq_factor", f"less than high_freq_factor {fast}")
        return RotaryScaling(factor, trained, fast, slow, ramp="turns")

    def amplitude(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    scaled = "mscale" in rope and "mscale_all_dim" in rope
    own = amplitude(rope.number("mscale")) / amplitude(rope.number("mscale_all_dim")) if scaled else amplitude()
    return RotaryScaling(
        factor,
        original=trained,
        fast=rope.number("beta_fast", default=32),
        slow=rope.number("beta_slow", default=1),
        truncate=rope.flag("truncate", default=True),
        amplitude=rope.number("attention_factor", default=own),
    )


def load_qwen2(
    directory: str | Path,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    shardings: PyTree | Sharding | None = None,
    bits: Bits | None = None,
) -> tuple[Qwen2Config, PyTree]:
    """Config and parameters of a published model, straight into `shardings` (of the tree `param_shapes` gives).

    With `bits` the kernels of the layers are stored in so many (`common.models.quantized`), one after the other.
    Computes in `dtype` and stores `param_dtype`; default: as the checkpoint is stored. Raises UserError as
    `config_from_directory` and `load_tree` do.
    """
    config = config_from_directory(directory)
    config = dataclasses.replace(config, dtype=dtype or config.dtype, param_dtype=param_dtype or config.param_dtype)
    stored = open_model(directory)
    names, shapes = name_map(config), param_shapes(config)
    if normalizes_head(read_family(directory)) and "lm_head.weight" in stored:
        stored["lm_head.weight"] = unit_rows(stored["lm_head.weight"])
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        check_tied(stored)
    ignored = r".*\.rotary_(pos_)?emb\.inv_freq" + (r"|lm_head\.weight" if config.tie_word_embeddings else "")
    return config, load_tree(
        stored,
        shapes,
        names,
        where=directory,
        shardings=shardings,
        ignored=ignored,
        convert=quantizing(config, bits),
    )


def quantizing(config: Qwen2Config, bits: Bits | None) -> Convert | None:
    """What makes `load_tree` store the kernels of a decoder's layers in `bits`. Raises UserError where it cannot."""
    if bits is None:
        return None
    inputs = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    check_blocks(inputs | {"heads x head_dim": config.num_attention_heads * config.head_dim}, bits)
    convert = jax.jit(quantized_leaf, static_argnums=(0, 2))
    return lambda path, leaf: convert(path, leaf, bits)


def save_qwen2(
    directory: str | Path,
    config: Qwen2Config,
    params: PyTree,
    *,
    source: str | Path | None = None,
    files: Mapping[str, str] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that transformers' `AutoModelForCausalLM.from_pretrained` loads, in the dtypes of `params`.

    `source` is the directory of the model that `params` descends from: the rest of its `config.json`, its generation
    config and its tokenizer go along, and `files` in their place (`common.data.exported_tokenizer`). The directory
    appears whole or not at all (`atomic_directory`). Raises UserError for a family that is read and not written.
    """
    check_trainable(config, "full")
    config = dataclasses.replace(config, param_dtype=widest_dtype(params))
    names, companions = name_map(config), [] if source is None else [Path(source) / name for name in COMPANIONS]
    original = {} if source is None else read_json_object(Path(source) / "config.json")
    with atomic_directory(directory) as aside:
        write_tensors(aside, _joined(params, names), max_bytes=max_shard_bytes)
        if jax.process_index() == 0:
            write_json(aside / "config.json", published_config(config, original))
            with disk_errors(aside):
                for companion in filter(Path.is_file, companions):
                    shutil.copyfile(companion, aside / companion.name)
            write_texts(aside, files or {})


def _joined(params: PyTree, names: NameMap) -> Iterator[tuple[str, np.ndarray]]:
    """`published_tensors`, with the leaves of one tensor joined."""
    leaves = flatten_dict(params, sep="/")
    alone = {path: leaf for path, leaf in leaves.items() if names[path].rows is None}
    yield from published_tensors(alone, names)
    together: dict[tuple[str | None, ...], dict[int, str]] = {}
    for path in [path for path in leaves if path not in alone]:
        together.setdefault(names[path].names, {})[(names[path].rows or (0,))[0]] = path
    for paths in together.values():
        parts = [published_tensors({paths[first]: leaves[paths[first]]}, names) for first in sorted(paths)]
        for tensors in zip(*parts, strict=True):
            yield tensors[0][0], np.concatenate([part for _, part in tensors])


def published_config(config: Qwen2Config, original: dict[str, Any] | None = None) -> dict[str, Any]:
    """`config.json` of the hub for `config`, over the other entries of `original`."""
    own = {
        "architectures": [FAMILIES[config.model_type].architecture],
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in SIZES},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **_published_scaling(config.rotary_scaling)},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        **_of_family(config),
        "torch_dtype": config.param_dtype,
    }
    kept = {name: value for name, value in (original or {}).items() if name not in LEFT_BEHIND}
    return {"max_position_embeddings": 32_768, **kept, **own}


def _of_family(config: Qwen2Config) -> dict[str, Any]:
    """What only some families have in `config.json`."""
    if config.model_type == "qwen2":
        return {"use_sliding_window": False}
    own: dict[str, Any] = {"attention_bias": config.attention_bias}
    return own | ({"partial_rotary_factor": config.rotary_dims / config.head_dim} if config.rotary_dims else {})


def _published_scaling(scaling: RotaryScaling) -> dict[str, Any]:
    """The entries of `rope_parameters` that `_rotary_scaling` reads."""
    if scaling == RotaryScaling():
        return {"rope_type": "default"}
    if not scaling.original:
        return {"rope_type": "linear", "factor": scaling.factor}
    if scaling.ramp == "turns":
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.slow,
            "high_freq_factor": scaling.fast,
            "original_max_position_embeddings": scaling.original,
        }
    return {
        "rope_type": "yarn",
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original,
        "beta_fast": scaling.fast,
        "beta_slow": scaling.slow,
        "truncate": scaling.truncate,
        "attention_factor": scaling.amplitude,
    }


@cache
def param_shapes(config: Qwen2Config) -> PyTree:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(partial(init_params, config), jax.random.key(0))


def name_map(config: Qwen2Config) -> NameMap:
    """Our leaves -> names on the hub."""
    return FAMILIES[config.model_type].names(config)


def check_tied(stored: dict[str, StoredTensor], name: str = "model.embed_tokens.weight", rows: int = 8192) -> None:
    """A tied checkpoint may hold its head again; it must not hold another one than the embedding `name`."""
    check_full(stored)
    head, embedding = stored["lm_head.weight"], stored.get(name)
    if embedding is None:
        return  # load_tree says that it is missing
    same = head.shape == embedding.shape and head.dtype == embedding.dtype
    for start in range(0, head.shape[0] if same else 0, rows):
        part = (slice(start, min(start + rows, head.shape[0])), slice(0, head.shape[1]))
        same = same and np.array_equal(head.read(part), embedding.read(part))
    if not same:
        raise UserError(
            f"{head.file}: tensor lm_head.weight differs from {name}, but config.json has tie_word_embeddings true; "
            "set it to false"
        )
