"""BERT encoders and CheXbert-like classifiers in their published layouts <-> configs and parameters.

- A directory of the Hugging Face hub (bert-base-uncased): an encoder, with or without the prefix `bert.`, LayerNorm's
  parameters as `weight` and `bias` or, as Google named them, `gamma` and `beta`.
- `chexbert.pth`: `bert.*` and `linear_heads.N.*`, and no config; sizes are inferred from the shapes.
- A directory of ours: those names in `model.safetensors`, and a `config.json` of the hub with the labels beside.

The pooler and the heads of pre-training are left out; nothing here uses them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from common.bounds import RATE
from common.errors import UserError
from common.io.safetensors import (
    NameMap,
    Published,
    StoredTensor,
    layered,
    load_tree,
    open_tensors,
    published_tensors,
    write_json,
    write_tensors,
)
from common.io.torch_archive import read_archive
from common.models.bert import SIZES, BertConfig, ClassifierConfig, classifier_shapes
from common.models.published import SIZE, WIDTH, read_entries
from common.types import PyTree

RATES = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob")
HEAD_DIM = 64  # of every BERT that Google published; shapes do not tell it
IGNORED = r"cls\..+|(bert\.)?pooler\..+|(bert\.)?embeddings\.(position|token_type)_ids"


def load_classifier(path: str | Path, sizes: str | Path | None = None) -> tuple[ClassifierConfig, PyTree]:
    """Config and parameters of `chexbert.pth` or of a directory of ours, as float32 on the first local device.

    Of a `.pth` file, the number of attention heads is that of `config.json` beside it or in the directory `sizes`, else
    one for each 64 units. Raises UserError, naming tensor and file, for anything missing, surplus or damaged.
    """
    path = Path(path)
    if path.is_dir():
        config = classifier_config(path)
        stored = open_encoder(path)
    else:
        stored = _renamed(read_archive(path))
        config = _config_from_tensors(stored, path, [path.parent, *([] if sizes is None else [Path(sizes)])])
    return config, load_tree(stored, classifier_shapes(config), name_map(config), where=path, ignored=IGNORED)


def load_encoder(directory: str | Path) -> tuple[BertConfig, PyTree]:
    """Config and parameters of a published BERT, as the subtree "bert" of a classifier. Raises UserError."""
    config = encoder_config(Path(directory) / "config.json")
    whole = ClassifierConfig(config)
    names = {path: name for path, name in name_map(whole).items() if path.startswith("bert/")}
    shapes = {"bert": classifier_shapes(whole)["bert"]}
    ignored = IGNORED + r"|linear_heads\..+|classifier\..+"
    params = load_tree(open_encoder(directory), shapes, names, where=directory, ignored=ignored)
    return config, params["bert"]


def save_classifier(aside: Path, config: ClassifierConfig, params: PyTree) -> None:
    """Write `config.json` and `model.safetensors`, in the dtypes of `params`, into a directory (`atomic_directory`)."""
    write_tensors(aside, published_tensors(params, name_map(config)))
    if jax.process_index() == 0:
        encoder = {name: getattr(config.encoder, name) for name in (*SIZES, *RATES)}
        labels = {"labels": list(config.labels), "label_classes": list(config.classes)}
        write_json(aside / "config.json", {"model_type": "bert", "hidden_act": "gelu", **encoder, **labels})


def classifier_config(directory: Path) -> ClassifierConfig:
    """The config of a directory of ours. Raises UserError for a BERT without labels."""
    file = directory / "config.json"
    published = read_entries(file)
    if "labels" not in published or "label_classes" not in published:
        raise UserError(
            f"{file}: has no 'labels' and 'label_classes', so it is not a labeler; expected chexbert.pth or the "
            "directory of a trained labeler (a plain BERT is what a labeler is trained from)"
        )
    labels, classes = published.items("labels", str), published.items("label_classes", int, bounds=SIZE)
    return ClassifierConfig(encoder_config(file), tuple(labels), tuple(classes))


def encoder_config(file: Path) -> BertConfig:
    """The config of a published BERT. Raises UserError for another architecture and for variants not implemented."""
    published, defaults = read_entries(file), BertConfig()
    for name, expected in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        published.choice(name, [expected], expected)
    few = ("num_hidden_layers", "num_attention_heads")
    sizes: dict[str, Any] = {
        name: published.whole(name, SIZE if name in few else WIDTH, getattr(defaults, name)) for name in SIZES
    }
    rates: dict[str, Any] = {name: published.number(name, RATE, getattr(defaults, name)) for name in RATES}
    try:
        return BertConfig(**sizes, **rates)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def open_encoder(directory: str | Path) -> dict[str, StoredTensor]:
    """The tensors of a directory, from safetensors or `pytorch_model.bin`, under the names of `chexbert.pth`."""
    archive = Path(directory) / "pytorch_model.bin"
    safe = any((Path(directory) / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
    return _renamed(read_archive(archive) if archive.is_file() and not safe else open_tensors(directory))


def name_map(config: ClassifierConfig) -> NameMap:
    """Our leaves -> names in `chexbert.pth`, less the "module." of DataParallel."""
    names = {}
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        names[f"bert/embeddings/{table}"] = Published((f"bert.embeddings.{table}.weight",))
    for ours, published in (("scale", "weight"), ("bias", "bias")):
        names[f"bert/embeddings/LayerNorm/{ours}"] = Published((f"bert.embeddings.LayerNorm.{published}",))
        for norm in ("attention/output", "output"):
            stored = f"bert.encoder.layer.{{}}.{norm.replace('/', '.')}.LayerNorm.{published}"
            names[f"bert/layer/{norm}/LayerNorm/{ours}"] = layered(stored, config.encoder.num_hidden_layers)
    for ours, published in DENSE.items():
        stored = f"bert.encoder.layer.{{}}.{published}"
        layers = config.encoder.num_hidden_layers
        names[f"bert/layer/{ours}/kernel"] = layered(f"{stored}.weight", layers, axes=(1, 0))
        names[f"bert/layer/{ours}/bias"] = layered(f"{stored}.bias", layers)
    for number in range(len(config.labels)):
        names[f"linear_heads_{number}/kernel"] = Published((f"linear_heads.{number}.weight",), (1, 0))
        names[f"linear_heads_{number}/bias"] = Published((f"linear_heads.{number}.bias",))
    return names


DENSE = {
    **{f"attention/{name}": f"attention.self.{name}" for name in ("query", "key", "value")},
    "attention/output/dense": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output/dense": "output.dense",
}


def _renamed(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """With "bert." before the encoder's names, and LayerNorm's parameters as PyTorch calls them."""
    renamed = {}
    for name, tensor in stored.items():
        name = re.sub(r"^(?=embeddings\.|encoder\.|pooler\.)", "bert.", name)
        renamed[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
            tensor
        )
    return renamed


def _config_from_tensors(stored: Mapping[str, StoredTensor], path: Path, folders: list[Path]) -> ClassifierConfig:
    """CheXbert's config with the sizes of these tensors. Raises UserError where they are no CheXbert's."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in stored or len(stored[name].shape) != 2:
            raise UserError(
                f"{path}: no matrix {name}; expected chexbert.pth, with bert.* and linear_heads.N.* under "
                "model_state_dict"
            )
        return stored[name].shape

    files = [folder / "config.json" for folder in folders if (folder / "config.json").is_file()]
    published = [own for own in map(read_entries, files) if own.values.get("model_type") == "bert"]
    vocab_size, hidden = shape("bert.embeddings.word_embeddings.weight")
    heads = None
    if published and published[0].values.get("hidden_size") == hidden and "num_attention_heads" in published[0]:
        heads = published[0].whole("num_attention_heads", SIZE)
    if heads is None and hidden % HEAD_DIM:
        raise UserError(
            f"{path}: hidden size {hidden} is not a multiple of {HEAD_DIM}, so the number of attention heads cannot be "
            "guessed; put the config.json of its BERT next to the file"
        )
    encoder = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=len({m[1] for name in stored if (m := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))}),
        num_attention_heads=heads or hidden // HEAD_DIM,
        intermediate_size=shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=shape("bert.embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("bert.embeddings.token_type_embeddings.weight")[0],
    )
    config = ClassifierConfig(encoder)
    for number, classes in enumerate(config.classes):
        if (found := shape(f"linear_heads.{number}.weight")) != (classes, hidden):
            raise UserError(
                f"{path}: tensor linear_heads.{number}.weight has shape {list(found)}, expected {[classes, hidden]} as "
                "in CheXbert"
            )
    return config
