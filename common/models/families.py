"""The families of published decoders that `common.models.qwen2` implements, and how each names its sizes and tensors.

`FAMILIES` is indexed by `model_type` of `config.json`; other types are not supported. Compared with Qwen2:

| `model_type` | models | differences |
|---|---|---|
| `qwen2` | Qwen2, Qwen2.5 | |
| `llama` | Llama 3, Yi-1.5 and models tuned from them | no biases; rotary scaling of its own |
| `glm` | GLM-4-9B in the layout of transformers | half of a head rotates, adjacent pairs; gate and up in one tensor |
| `glm4` | GLM-4-0414 | as `glm`, and two more norms in each layer |
| `chatglm` | GLM-4-9B as first published | as `glm` under other names; q, k and v in one tensor |
| `baichuan` | Baichuan-7B, Baichuan2-7B | no biases; q, k and v in one tensor; rows of Baichuan2's head have length 1 |

PyTorch's linear layers are [out, in] and ours [in, out]; embedding and head are [V, D] in both.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.io.safetensors import Index, NameMap, Published, StoredTensor, layered
from common.models.published import Entries, read_entries
from common.models.qwen2 import Qwen2Config

Read = tuple[dict[str, Any], dict[str, Any]]  # defaults of entries that are left out; fields that no entry gives
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
PROJECTIONS = {"self_attn": (*ATTENTION_INPUTS, "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NORMS = ("input_layernorm", "post_attention_layernorm")
POST_NORMS = ("post_self_attn_layernorm", "post_mlp_layernorm")
CHATGLM_ENTRIES = {
    "vocab_size": "padded_vocab_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "multi_query_group_num",
    "head_dim": "kv_channels",
    "rms_norm_eps": "layernorm_epsilon",
    "max_position_embeddings": "seq_length",
}
CHATGLM_TENSORS = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "model.layers": "transformer.encoder.layers",
    "self_attn.query_key_value": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`.

    `read` checks what only this family says, and gives what `decoder_config` needs beside the entries that all have.
    `entries` are names in `config.json`, {ours: its own}, and `names` maps our leaves to its tensors. `shared` are
    matrices that hold several projections. `architecture` is the class that reads an export of all parameters; ""
    where none is written. `adapters` is whether PEFT knows the modules by transformers' names.
    """

    read: Callable[[Entries], Read]
    names: Callable[[Qwen2Config], NameMap]
    architecture: str = ""
    shared: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    entries: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adapters: bool = True


def read_family(directory: str | Path) -> Entries:
    """`config.json` under the names of Qwen2's. Raises UserError for an architecture that is not implemented."""
    published = read_entries(Path(directory) / "config.json")
    return published.renamed(FAMILIES[published.choice("model_type", list(FAMILIES))].entries)


def _read_qwen2(_: Entries) -> Read:
    return {}, {}


def _read_llama(published: Entries) -> Read:
    for name in ("attention_bias", "mlp_bias"):
        if published.flag(name):
            raise published.error(name, "false; biases of Llama are not implemented")
    return {}, {"model_type": "llama", "attention_bias": False}


def _read_glm(published: Entries) -> Read:
    kind = published.values["model_type"]
    defaults = {"rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5, "num_key_value_heads": 2, "head_dim": 128}
    bias = published.flag("attention_bias", default=True)
    fields = {"model_type": kind, "attention_bias": bias, "post_norms": kind == "glm4", "rotary_pairs": "adjacent"}
    return defaults, fields


def _read_chatglm(published: Entries) -> Read:
    others = ("add_bias_linear", "apply_residual_connection_post_layernorm")
    for name in ("rmsnorm", "post_layer_norm", "original_rope", "multi_query_attention", *others):
        if published.flag(name, default=name not in others) != (name not in others):
            raise published.error(name, f"{str(name not in others).lower()}; other ChatGLMs are not implemented")
    theta = 10_000 * published.number("rope_ratio", default=1)
    bias = published.flag("add_qkv_bias")
    defaults = {"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "rope_theta": theta}
    return defaults, {"model_type": "chatglm", "attention_bias": bias, "rotary_pairs": "adjacent"}


def _read_baichuan(published: Entries) -> Read:
    if "max_position_embeddings" not in published or published.values.get("num_hidden_layers") == 40:
        raise UserError(
            f"{published.where}: this is a Baichuan of 13 billion parameters (40 layers, no max_position_embeddings), "
            "which uses ALiBi instead of rotary positions and is not supported; use the one with 7 billion"
        )
    return {}, {"model_type": "baichuan", "attention_bias": False}


def normalizes_head(published: Entries) -> bool:
    """Whether logits are products with rows of length 1: Baichuan2's NormHead. Version 1 has a plain head."""
    if published.values["model_type"] != "baichuan":
        return False
    return published.values["vocab_size"] != 64_000 and "BaiChuanForCausalLM" not in published.items(
        "architectures", str
    )


def unit_rows(tensor: StoredTensor) -> StoredTensor:
    """A matrix with each row divided by its length, in float32, as `torch.nn.functional.normalize` does it."""

    def read(index: Index) -> np.ndarray:
        rows, columns = index if index else (slice(None), slice(None))
        whole = tensor.read((rows, slice(0, tensor.shape[1]))).astype(np.float32)
        return (whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12))[:, columns]

    return dataclasses.replace(tensor, dtype="F32", read=read)


def warn_of_rotation(published: Entries, config: Qwen2Config) -> None:
    """Warn where GLM-4's `rope_theta` is not that of its first release, by `rope_ratio` or as far as it is known.

    GLM-4-9B-Chat (131,072 positions) was released with `rope_ratio` 500, and for transformers with a base of 10,000.
    """
    if config.model_type != "glm":
        return
    said = "rope_ratio" in published
    theta = 10_000 * published.number("rope_ratio", default=500)
    doubtful = config.rope_theta == 10_000 and published.values.get("max_position_embeddings") == 131_072
    if config.rope_theta != theta and (said or doubtful):
        source = "rope_ratio means" if said else "the first release of GLM-4-9B-Chat has"
        warnings.warn(
            f"{published.where}: rope_theta is {config.rope_theta:,.0f} and is used, but {source} {theta:,.0f}; if "
            "answers to long prompts are poor, change rope_theta in the file",
            stacklevel=2,
        )


def check_trainable(config: Qwen2Config, tuning: str) -> None:
    """Raise UserError where what `tuning` trains ("lora" or "full") is not written in the layout of the family."""
    if not FAMILIES[config.model_type].adapters:
        raise UserError(
            f"a model of type {config.model_type} cannot be trained, because PEFT uses other names "
            "for its modules; use the layout of transformers (GLM-4-9B-hf, model_type glm)"
        )
    if tuning == "full" and not FAMILIES[config.model_type].architecture:
        raise UserError(
            f"a model of type {config.model_type} does not support full fine-tuning, because transformers has no "
            "class that reads it; "
            "train an adapter (model.tuning lora)"
        )


def shared_features(config: Qwen2Config) -> dict[str, dict[str, int]]:
    """The projections of each matrix that holds several, and how many rows of it each of them has, in their order."""
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    features = {"q_proj": q, "k_proj": kv, "v_proj": kv}
    return {
        matrix: {name: features.get(name, config.intermediate_size) for name in names}
        for matrix, names in FAMILIES[config.model_type].shared.items()
    }


def _transformers_names(config: Qwen2Config) -> NameMap:
    """Qwen2's and Llama's, after which ours are called."""
    layers = config.num_hidden_layers
    names = {
        "embed_tokens": Published(("model.embed_tokens.weight",)),
        "norm/scale": Published(("model.norm.weight",)),
    }
    if not config.tie_word_embeddings:
        names["lm_head"] = Published(("lm_head.weight",))
    for norm in NORMS + POST_NORMS * config.post_norms:
        names[f"layers/{norm}/scale"] = layered(f"model.layers.{{}}.{norm}.weight", layers)
    for module, projections in PROJECTIONS.items():
        for name in projections:
            published = f"model.layers.{{}}.{module}.{name}"
            names[f"layers/{module}/{name}/kernel"] = layered(f"{published}.weight", layers, axes=(1, 0))
            if config.attention_bias and name in ATTENTION_INPUTS:
                names[f"layers/{module}/{name}/bias"] = layered(f"{published}.bias", layers)
    return names


def _joined_names(config: Qwen2Config) -> NameMap:
    """As transformers', with the matrices that hold several projections."""
    names, layers = dict(_transformers_names(config)), config.num_hidden_layers
    for matrix, features in shared_features(config).items():
        first, total = 0, sum(features.values())
        for name, size in features.items():
            module = next(module for module, projections in PROJECTIONS.items() if name in projections)
            rows, path = (first, first + size, total), f"layers/{module}/{name}"
            tensor = f"model.layers.{{}}.{module}.{matrix}"
            names[f"{path}/kernel"] = layered(f"{tensor}.weight", layers, (1, 0), rows)
            if f"{path}/bias" in names:
                names[f"{path}/bias"] = layered(f"{tensor}.bias", layers, rows=rows)
            first += size
    return names


def _chatglm_names(config: Qwen2Config) -> NameMap:
    def theirs(name: str) -> str:
        for part, other in CHATGLM_TENSORS.items():
            name = name.replace(part, other)
        return name

    return {
        path: dataclasses.replace(published, names=tuple(theirs(str(name)) for name in published.names))
        for path, published in _joined_names(config).items()
    }


GATE_UP = {"gate_up_proj": ("gate_proj", "up_proj")}
FAMILIES: Mapping[str, Family] = {
    "qwen2": Family(_read_qwen2, _transformers_names, "Qwen2ForCausalLM"),
    "llama": Family(_read_llama, _transformers_names, "LlamaForCausalLM"),
    "glm": Family(_read_glm, _joined_names, "GlmForCausalLM", GATE_UP),
    "glm4": Family(_read_glm, _joined_names, "Glm4ForCausalLM", GATE_UP),
    "chatglm": Family(
        _read_chatglm,
        _chatglm_names,
        shared={"query_key_value": ATTENTION_INPUTS, **GATE_UP},
        entries=CHATGLM_ENTRIES,
        adapters=False,
    ),
    "baichuan": Family(_read_baichuan, _joined_names, shared={"W_pack": ATTENTION_INPUTS}),
}
