"""Qwen2.5-VL in the layouts of Hugging Face: `config.json` and safetensors <-> Qwen2VLConfig and parameters.

On the hub tensors are named `visual.*`, `model.*` and `lm_head.weight`, and config.json keeps the language model's
sizes at its top; in transformers' memory, and in files written from it, they are `model.visual.*` and
`model.language_model.*`, and the sizes stand in `text_config`. Both are read and written.
"""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Sharding

from common.bounds import Within
from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.safetensors import (
    SHARD_BYTES,
    Convert,
    NameMap,
    Published,
    disk_errors,
    layered,
    load_tree,
    open_tensors,
    published_tensors,
    widest_dtype,
    write_json,
    write_tensors,
    write_texts,
)
from common.io.text import read_json_object
from common.models import qwen2_weights
from common.models.published import SIZE, WIDTH, Entries, read_entries
from common.models.qwen2_vl import Qwen2VLConfig, init_params
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_weights import POSITIONS, check_tied, decoder_config
from common.types import PyTree

Naming = Literal["hub", "memory"]
# How names of the tower and of the decoder begin.
PREFIXES: dict[Naming, tuple[str, str]] = {
    "hub": ("visual.", "model."),
    "memory": ("model.visual.", "model.language_model."),
}
# What an entry that config.json leaves out stands for, where it differs from Qwen2.
TEXT_DEFAULTS = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "mrope_section": (16, 24, 24)}
VISION_SIZES = (
    *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size"),
    *("temporal_patch_size", "spatial_merge_size", "window_size"),
)
VISION_WIDTHS = ("hidden_size", "intermediate_size", "out_hidden_size", "window_size")
IDS = Within(0, WIDTH.most)
LAYERS = Within(0, SIZE.most)
SPECIAL_IDS = {  # ours -> in config.json
    "vision_start_token_id": "vision_start_token_id",
    "vision_end_token_id": "vision_end_token_id",
    "vision_pad_token_id": "vision_token_id",
    "image_token_id": "image_token_id",
    "video_token_id": "video_token_id",
}
COMPANIONS = (
    *qwen2_weights.COMPANIONS,
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "chat_template.json"),
)


def config_from_directory(directory: str | Path) -> Qwen2VLConfig:
    """The config of a published Qwen2.5-VL, computing in the dtype its weights are stored in.

    Raises UserError for another architecture and for variants that are not implemented.
    """
    published = read_entries(Path(directory) / "config.json")
    published.choice("model_type", ["qwen2_5_vl"])
    seen = published.part("vision_config")
    if not seen.values:
        raise published.error("vision_config", "that of Qwen2.5-VL")
    seen.choice("hidden_act", ["silu"], "silu")
    language = decoder_config(_text_entries(published), TEXT_DEFAULTS)
    defaults = dataclasses.asdict(VisionConfig())
    sizes: dict[str, Any] = {
        name: seen.whole(name, WIDTH if name in VISION_WIDTHS else SIZE, defaults[name]) for name in VISION_SIZES
    }
    channels = "in_channels" if "in_channels" in seen else "in_chans"
    sizes["in_channels"] = seen.whole(channels, SIZE, defaults["in_channels"])
    full = seen.items("fullatt_block_indexes", int, defaults["fullatt_block_indexes"], LAYERS)
    ids = {ours: published.whole(name, IDS, getattr(Qwen2VLConfig, ours)) for ours, name in SPECIAL_IDS.items()}
    try:
        vision = VisionConfig(
            **sizes, fullatt_block_indexes=tuple(full), dtype=language.dtype, param_dtype=language.param_dtype
        )
        return Qwen2VLConfig(language, vision, **ids)
    except UserError as error:
        raise UserError(f"{published.where}: {error}") from error


def max_positions(directory: str | Path) -> int | None:
    """How many positions a published model was trained on; None where it does not say. Raises UserError."""
    published = _text_entries(read_entries(Path(directory) / "config.json"))
    if "max_position_embeddings" not in published:
        return None
    return published.whole("max_position_embeddings", POSITIONS)


def load_qwen2_vl(
    directory: str | Path,
    *,
    dtype: str | None = None,
    param_dtype: str | None = None,
    shardings: PyTree | Sharding | None = None,
    convert: Convert | None = None,
) -> tuple[Qwen2VLConfig, PyTree]:
    """Config and parameters of a published model, straight into `shardings` (of the tree `param_shapes` gives).

    Computes in `dtype` and stores `param_dtype`; default: as the checkpoint is stored. `convert` makes of each leaf of
    the language model, as soon as it is read, what stands in its place; paths begin with "language/". Raises UserError
    as `config_from_directory` and `load_tree` do.
    """
    config = config_from_directory(directory)
    dtype, param_dtype = dtype or config.language.dtype, param_dtype or config.language.param_dtype
    config = dataclasses.replace(
        config,
        language=dataclasses.replace(config.language, dtype=dtype, param_dtype=param_dtype),
        vision=dataclasses.replace(config.vision, dtype=dtype, param_dtype=param_dtype),
    )
    stored = open_tensors(directory)
    naming = naming_of(stored)
    tied = config.language.tie_word_embeddings
    if tied and "lm_head.weight" in stored:
        check_tied(stored, f"{PREFIXES[naming][1]}embed_tokens.weight")
    ignored = r".*\.inv_freq" + (r"|lm_head\.weight" if tied else "")
    names = name_map(config, naming)

    def of_language(path: str, leaf: jax.Array) -> Mapping[str, jax.Array]:
        return {path: leaf} if convert is None or not path.startswith("language/") else convert(path, leaf)

    return config, load_tree(
        stored,
        param_shapes(config),
        names,
        where=directory,
        shardings=shardings,
        ignored=ignored,
        convert=of_language,
    )


def save_qwen2_vl(
    directory: str | Path,
    config: Qwen2VLConfig,
    params: PyTree,
    *,
    source: str | Path | None = None,
    naming: Naming = "hub",
    files: Mapping[str, str] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a directory that transformers' `Qwen2_5_VLForConditionalGeneration.from_pretrained` loads.

    In the dtypes of `params`, named as on the hub or as in transformers' memory. `source` is the directory of the model
    that `params` descends from: the rest of its `config.json`, its generation config, tokenizer and image processor go
    along, and `files` in their place (`common.data.exported_tokenizer`). The directory appears whole or not at all
    (`atomic_directory`).
    """
    stored = widest_dtype(params)
    config = dataclasses.replace(config, language=dataclasses.replace(config.language, param_dtype=stored))
    companions = [] if source is None else [Path(source) / name for name in COMPANIONS]
    original = {} if source is None else read_json_object(Path(source) / "config.json")
    with atomic_directory(directory) as aside:
        write_tensors(aside, published_tensors(params, name_map(config, naming)), max_bytes=max_shard_bytes)
        if jax.process_index() == 0:
            write_json(aside / "config.json", published_config(config, original, naming))
            with disk_errors(aside):
                for companion in filter(Path.is_file, companions):
                    shutil.copyfile(companion, aside / companion.name)
            write_texts(aside, files or {})


def naming_of(stored: Collection[str]) -> Naming:
    """Which of the two ways the tensors of a checkpoint are named in."""
    return "memory" if any(name.startswith(PREFIXES["memory"]) for name in stored) else "hub"


def published_config(
    config: Qwen2VLConfig, original: dict[str, Any] | None = None, naming: Naming = "hub"
) -> dict[str, Any]:
    """`config.json` for `config` in either layout, over the other entries of `original`."""
    described = _text_entries(Entries(original or {}, "config.json")).values
    text = qwen2_weights.published_config(config.language, described)
    for name in ("head_dim", "rope_parameters"):  # not of this architecture; rope_scaling and rope_theta say it
        del text[name]
    seen = (original or {}).get("vision_config") or {}
    vision = {
        **{name: value for name, value in seen.items() if name not in ("dtype", "torch_dtype")},
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        **{name: getattr(config.vision, name) for name in (*VISION_SIZES, "in_channels")},
        "in_chans": config.vision.in_channels,
        "fullatt_block_indexes": list(config.vision.fullatt_block_indexes),
    }
    text["rope_scaling"] = {"type": "mrope", "mrope_section": list(config.language.mrope_section)}
    whole = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{name: getattr(config, ours) for ours, name in SPECIAL_IDS.items()},
        "vision_config": vision,
    }
    if naming == "hub":
        return {**text, **whole}
    nested = {**text, "architectures": None, "model_type": "qwen2_5_vl_text"}
    shared = {name: text[name] for name in ("tie_word_embeddings", "torch_dtype")}
    return {**whole, **shared, "text_config": nested}


@cache
def param_shapes(config: Qwen2VLConfig) -> PyTree:
    """Shapes and dtypes of the parameters, without making them."""
    return jax.eval_shape(partial(init_params, config), jax.random.key(0))


def name_map(config: Qwen2VLConfig, naming: Naming = "hub") -> NameMap:
    """Our leaves -> published names."""
    visual, decoder = PREFIXES[naming]
    names = {
        "visual/patch_embed/kernel": Published((f"{visual}patch_embed.proj.weight",), (1, 2, 3, 4, 0)),
        "visual/merger/ln_q/scale": Published((f"{visual}merger.ln_q.weight",)),
    }
    for number in (0, 2):
        names[f"visual/merger/mlp_{number}/kernel"] = Published((f"{visual}merger.mlp.{number}.weight",), (1, 0))
        names[f"visual/merger/mlp_{number}/bias"] = Published((f"{visual}merger.mlp.{number}.bias",))
    blocks, depth = f"{visual}blocks.{{}}.", config.vision.depth
    for norm in ("norm1", "norm2"):
        names[f"visual/blocks/{norm}/scale"] = layered(f"{blocks}{norm}.weight", depth)
    for module, projections in {"attn": ("qkv", "proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}.items():
        for name in projections:
            published = f"{blocks}{module}.{name}"
            names[f"visual/blocks/{module}/{name}/kernel"] = layered(f"{published}.weight", depth, axes=(1, 0))
            names[f"visual/blocks/{module}/{name}/bias"] = layered(f"{published}.bias", depth)
    for path, entry in qwen2_weights.name_map(config.language).items():
        own = tuple(name and name.replace("model.", decoder, 1) for name in entry.names)
        names[f"language/{path}"] = dataclasses.replace(entry, names=own)
    return names


def _text_entries(published: Entries) -> Entries:
    """The entries that describe the decoder, at the top of config.json or in its `text_config`."""
    nested = published.part("text_config")
    top = {name: value for name, value in published.values.items() if name not in ("text_config", "vision_config")}
    rope: dict[str, Any] = {}
    for entries in (published, nested):
        for name in ("rope_scaling", "rope_parameters"):
            rope |= entries.part(name).values
    tied = published.flag("tie_word_embeddings") or nested.flag("tie_word_embeddings")
    own = {"rope_scaling": None, "rope_parameters": rope, "tie_word_embeddings": tied}
    return Entries({**top, **nested.values, **own}, published.where, "text_config " if nested.values else "")
