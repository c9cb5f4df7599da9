"""Qwen2 / Qwen2.5 in the layout of the Hugging Face hub: `config.json` and safetensors <-> Qwen2Config and parameters.

PyTorch's linear layers are [out, in] and ours [in, out]; embedding and head are [V, D] in both.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from common.errors import UserError
from common.io.text import read_json_object
from common.models.layers import RotaryScaling
from common.models.qwen2 import Qwen2Config, init_params
from common.types import PyTree
from common.weights import (
    SHARD_BYTES,
    NameMap,
    Published,
    StoredTensor,
    layered,
    load_tree,
    open_tensors,
    published_tensors,
    widest_dtype,
    write_json,
    write_tensors,
    write_texts,
    writing,
    written_whole,
)

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# What stands beside the weights of a published model and belongs to an export of its descendants too.
COMPANIONS = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE"),
)


def config_from_directory(directory: str | Path) -> Qwen2Config:
    """The config of a published Qwen2 or Qwen2.5 model, computing in the dtype its weights are stored in.

    Raises UserError for another architecture and for variants that the decoder does not implement.
    """
    file = Path(directory) / "config.json"
    published = read_json_object(file)
    if published.get("model_type") != "qwen2":
        raise UserError(f"{file}: model_type is {published.get('model_type')!r}, expected 'qwen2' (Qwen2 or Qwen2.5)")
    return decoder_config(published, file)


def decoder_config(published: dict[str, Any], file: Path) -> Qwen2Config:
    """The config of the decoder that `published`, read from `file`, describes. Raises UserError."""

    def refuse(what: str) -> UserError:
        return UserError(f"{file}: {what}")

    def number(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise refuse(f"{name} is {value!r}, expected a positive number")
        return float(value)

    def size(name: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise refuse(f"{name} is {value!r}, expected a positive whole number")
        return value

    if published.get("hidden_act", "silu") != "silu":
        raise refuse(f"hidden_act is {published['hidden_act']!r}, expected 'silu'")
    if "quantization_config" in published:
        raise refuse("the checkpoint is quantized; export it as full weights first")
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(published.get(name) or {}, dict):
            raise refuse(f"{name} is {published[name]!r}, expected an object")
        rope |= published.get(name) or {}
    scaling = _rotary_scaling(rope, published, file)
    sizes: dict[str, Any] = {name: size(name, published.get(name)) for name in SIZES}
    kinds = published.get("layer_types") or []
    if not isinstance(kinds, list):
        raise refuse(f"layer_types is {kinds!r}, expected a list")
    if kinds and len(kinds) != sizes["num_hidden_layers"]:
        raise refuse(f"layer_types has {len(kinds)} entries, expected num_hidden_layers {sizes['num_hidden_layers']}")
    slides = "sliding_attention" in kinds
    if not kinds and published.get("use_sliding_window") and published.get("sliding_window", 4096) is not None:
        full = published.get("max_window_layers", 28)  # layers before the first that slides
        slides = type(full) is not int or full < sizes["num_hidden_layers"]
    if slides:
        raise refuse("use_sliding_window is not implemented; expected full attention in every layer")
    heads, shared, width = sizes["num_attention_heads"], published.get("num_key_value_heads"), published.get("head_dim")
    key_value_heads = heads if shared is None else size("num_key_value_heads", shared)
    head_dim = size("head_dim", sizes["hidden_size"] // heads if width is None else width)
    if head_dim % 2:
        raise refuse(f"head_dim is {head_dim}, expected an even number")
    sections = rope.get("mrope_section") or []
    if not isinstance(sections, list):
        raise refuse(f"mrope_section is {sections!r}, expected a list")
    if heads % key_value_heads:
        raise refuse(f"num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}")
    dtype = published.get("dtype") or published.get("torch_dtype") or "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise refuse(f"dtype is {dtype!r}, expected float32, bfloat16 or float16")
    return Qwen2Config(
        **sizes,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rope_theta=number("rope_theta", rope.get("rope_theta", published.get("rope_theta", 10_000.0))),
        mrope_section=tuple(size("mrope_section", section) for section in sections),
        rotary_scaling=scaling,
        rms_norm_eps=number("rms_norm_eps", published.get("rms_norm_eps", 1e-6)),
        tie_word_embeddings=bool(published.get("tie_word_embeddings", False)),
        dtype=dtype,
        param_dtype=dtype,
    )


def _rotary_scaling(rope: dict[str, Any], published: dict[str, Any], file: Path) -> RotaryScaling:
    """What transformers calls linear and YaRN scaling. Raises UserError for other kinds."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default" or (kind == "mrope" and "mrope_section" in rope):
        return RotaryScaling()
    if kind not in ("linear", "yarn") or "mrope_section" in rope:
        raise UserError(f"{file}: rotary scaling {kind!r} is not implemented; expected 'default', 'linear' or 'yarn'")

    def number(name: str, default: Any = None) -> float:
        value = default if rope.get(name) is None else rope[name]
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise UserError(f"{file}: {name} of the rotary scaling is {value!r}, expected a positive number")
        return float(value)

    factor = number("factor")
    if kind == "linear":
        return RotaryScaling(factor)

    def amplitude(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    scales = rope.get("mscale"), rope.get("mscale_all_dim")
    own = amplitude(number("mscale")) / amplitude(number("mscale_all_dim")) if all(scales) else amplitude()
    return RotaryScaling(
        factor,
        original=int(number("original_max_position_embeddings", published.get("max_position_embeddings"))),
        fast=number("beta_fast", 32),
        slow=number("beta_slow", 1),
        truncate=bool(rope.get("truncate", True)),
        amplitude=number("attention_factor", own),
    )


def load_qwen2(
    directory: str | Path,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    shardings: PyTree | Sharding | None = None,
) -> tuple[Qwen2Config, PyTree]:
    """Config and parameters of a published model, straight into `shardings` (of the tree `param_shapes` gives).

    Computes in `dtype` and stores `param_dtype`; default: as the checkpoint is stored. Raises UserError as
    `config_from_directory` and `load_tree` do.
    """
    config = config_from_directory(directory)
    config = dataclasses.replace(config, dtype=dtype or config.dtype, param_dtype=param_dtype or config.param_dtype)
    stored = open_tensors(directory)
    names, shapes = name_map(config), param_shapes(config)
    if config.tie_word_embeddings and "lm_head.weight" in stored:
        check_tied(stored)
    ignored = r".*\.rotary_emb\.inv_freq" + (r"|lm_head\.weight" if config.tie_word_embeddings else "")
    return config, load_tree(stored, shapes, names, where=directory, shardings=shardings, ignored=ignored)


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
    appears whole or not at all (`written_whole`).
    """
    config = dataclasses.replace(config, param_dtype=widest_dtype(params))
    names, companions = name_map(config), [] if source is None else [Path(source) / name for name in COMPANIONS]
    original = {} if source is None else read_json_object(Path(source) / "config.json")
    with written_whole(directory) as aside:
        write_tensors(aside, published_tensors(params, names), max_bytes=max_shard_bytes)
        if jax.process_index() == 0:
            write_json(aside / "config.json", published_config(config, original))
            with writing(aside):
                for companion in filter(Path.is_file, companions):
                    shutil.copyfile(companion, aside / companion.name)
            write_texts(aside, files or {})


def published_config(config: Qwen2Config, original: dict[str, Any] | None = None) -> dict[str, Any]:
    """`config.json` of the hub for `config`, over the other entries of `original`."""
    own = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **{name: getattr(config, name) for name in SIZES},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **_published_scaling(config.rotary_scaling)},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_sliding_window": False,
        "torch_dtype": config.param_dtype,
    }
    replaced = ("dtype", "rope_scaling", "quantization_config")  # what is written is never quantized
    kept = {name: value for name, value in (original or {}).items() if name not in replaced}
    return {"max_position_embeddings": 32_768, **kept, **own}


def _published_scaling(scaling: RotaryScaling) -> dict[str, Any]:
    """The entries of `rope_parameters` that `_rotary_scaling` reads."""
    if scaling == RotaryScaling():
        return {"rope_type": "default"}
    if not scaling.original:
        return {"rope_type": "linear", "factor": scaling.factor}
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
    layers = config.num_hidden_layers
    names = {
        "embed_tokens": Published(("model.embed_tokens.weight",)),
        "norm/scale": Published(("model.norm.weight",)),
    }
    if not config.tie_word_embeddings:
        names["lm_head"] = Published(("lm_head.weight",))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        names[f"layers/{norm}/scale"] = layered(f"model.layers.{{}}.{norm}.weight", layers)
    for module, projections in PROJECTIONS.items():
        for name in projections:
            published = f"model.layers.{{}}.{module}.{name}"
            names[f"layers/{module}/{name}/kernel"] = layered(f"{published}.weight", layers, axes=(1, 0))
            if name in ("q_proj", "k_proj", "v_proj"):
                names[f"layers/{module}/{name}/bias"] = layered(f"{published}.bias", layers)
    return names


PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


def check_tied(stored: dict[str, StoredTensor], name: str = "model.embed_tokens.weight", rows: int = 8192) -> None:
    """A tied checkpoint may hold its head again; it must not hold another one than the embedding `name`."""
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
