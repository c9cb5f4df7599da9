"""Set-up and export shared by both training stages of DEER: the base model, its trees, and data."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from common.bounds import check_numbers
from common.data.exported_tokenizer import exported_files, reading_note
from common.data.qwen_images import check_processor, processor_files
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.tokenizers import Tokenizer, check_vocabulary, load_tokenizer
from common.errors import UserError
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.io.safetensors import open_tensors
from common.models.attention_choice import check_implementation
from common.models.lora import init_lora, merge
from common.models.peft import VISION_LANGUAGE, save_peft
from common.models.quantized import KINDS, stored_as
from common.models.qwen2_vl import SHARDING_RULES, Qwen2VLConfig
from common.models.qwen2_vl_layout import vision_layout
from common.models.qwen2_vl_vision import VisionLayout
from common.models.qwen2_vl_weights import (
    config_from_directory,
    load_qwen2_vl,
    max_positions,
    naming_of,
    param_shapes,
    save_qwen2_vl,
)
from common.models.qwen2_weights import quantizing
from common.report.model_card import ModelCard
from common.training.logs import check_wandb
from common.training.parallel import DeviceLayout, check_heads, device_put_tree, shardings
from common.training.run import BaseWeights
from common.types import PyTree
from deer_jax.config import EMBEDDED_BASE, DataConfig, ModelConfig, RolloutConfig, RunConfig, check_base
from deer_jax.prompts import Encoder, prompt_length, read_splits
from deer_jax.vision_policy import split_params


class Base(NamedTuple):
    """A base model that has been read: where it lies, its sizes, parameters on the devices, tokenizer, images."""

    directory: Path
    config: Qwen2VLConfig
    params: PyTree
    encoder: Encoder
    layout: VisionLayout
    devices: DeviceLayout

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the language model."""
        return self.encoder.tokenizer


def base_directory(model: ModelConfig) -> Path:
    """Where the base model lies. Raises UserError where none is named."""
    check_base(model)
    return EMBEDDED_BASE if model.base == "embedded" else Path(model.base)


def check_run(config: RunConfig) -> None:
    """Raise UserError for a number out of its bounds, or a logger that is missing."""
    check_numbers(config)
    check_wandb(config.wandb_project)


def load_base(model: ModelConfig, side: int, instruction: str, layout: DeviceLayout) -> Base:
    """The base model, read straight into the shardings of `layout`. Raises UserError."""
    directory = base_directory(model)
    check_implementation(model.attention)
    sizes = config_from_directory(directory)
    check_heads(sizes.language.num_key_value_heads, layout)
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, sizes.language)
    check_processor(directory, sizes.vision)
    unit = sizes.vision.token_size
    if side < 1 or side % unit:
        raise UserError(f"data.side: {side} pixels; expected a multiple of {unit}, preferably of 112")
    stored, bits = ("float32", None) if model.tuning == "full" else stored_as(model.param_dtype)
    targets = shardings(param_shapes(sizes), layout, SHARDING_RULES)
    sizes, params = load_qwen2_vl(
        directory,
        dtype=model.dtype,
        param_dtype=stored,
        shardings=targets,
        convert=quantizing(sizes.language, bits),
    )
    parts = {
        name: dataclasses.replace(getattr(sizes, name), attention=model.attention, remat=model.remat)
        for name in ("language", "vision")
    }
    sizes = dataclasses.replace(sizes, **parts)
    encoder = Encoder(sizes, tokenizer, side, instruction)
    return Base(directory, sizes, params, encoder, vision_layout(sizes.vision, encoder.grid), layout)


def check_positions(base: Base, views: int, new: int, option: str) -> None:
    """Raise UserError where a prompt of this many images and `new` tokens, as `option` says, are too many positions."""
    length, limit = prompt_length(base.encoder, views), max_positions(base.directory)
    if limit and length + new > limit:
        raise UserError(
            f"{option}: {new} tokens after a prompt of {length}, but the model has max_position_embeddings {limit}; "
            f"give at most {limit - length}"
        )


def initial_trees(config: RunConfig, base: Base, layout: DeviceLayout) -> tuple[PyTree, PyTree]:
    """(trainable, frozen) before the first step, placed; what is trained is kept in float32."""
    trainable, frozen = split_params(base.params, config.model.tuning)
    trainable = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trainable)
    if config.model.tuning == "lora":
        shapes, language = param_shapes(base.config)["language"], base.params["language"]
        adapters = init_lora(shapes, config.lora, jax.random.key(config.seed), language)
        trainable = {"lora": device_put_tree(adapters, layout, SHARDING_RULES)}
    return trainable, frozen


def decode_settings(base: Base, rollout: RolloutConfig) -> DecodeSettings:
    """How reports are sampled: stop tokens end them, and rows of the embedding that are no token are forbidden."""
    return DecodeSettings(
        max_new_tokens=rollout.max_new_tokens,
        sampling=Sampling(temperature=rollout.temperature, top_p=rollout.top_p),
        stop_ids=base.tokenizer.stop_ids,
        forbidden_ids=tuple(range(base.tokenizer.vocab_size, base.config.language.vocab_size)),
    )


def load_studies(data: DataConfig, quarantine: Quarantine) -> dict[str, Split]:
    """The data, with a training and a validation split. Raises UserError."""
    splits = read_splits(data, quarantine)
    for name in ("train", "validation"):
        if name not in splits or not splits[name].studies:
            raise UserError(f"data: there is no {name} split; expected at least one study there")
    return splits


def learnt_rows(splits: Mapping[str, Split]) -> Iterator[list[str]]:
    """What a run learns from, for its digest."""
    return ([study.id, study.report] for name in ("train", "validation") for study in splits[name].studies)


def report_card(title: str, base: BaseWeights, data: str, command: str) -> ModelCard:
    """The model card of a stage that was trained on `data` by `command`."""
    return ModelCard(
        f"{title}: radiology reports", base, data, command,
        tags=("medical", "radiology", "report-generation"),
    )  # fmt: skip


def export(config: RunConfig, base: Base, trainable: PyTree, frozen: PyTree, run_dir: Path) -> None:
    """Write what was trained for others to use: the whole model in `model/`, adapters in `adapter/` as well.

    A language model that was trained on in fewer bits is the base's own. Tensors are named as in the base model's
    directory.
    """
    whole = {**frozen, **trainable}
    adapters = whole.pop("lora", {})
    if adapters:
        save_peft(run_dir / "adapter", adapters, config.lora, str(base.directory.resolve()), VISION_LANGUAGE)
    if config.model.tuning != "full" and config.model.param_dtype in KINDS:
        whole["language"] = merged_language(config, base, adapters)
    elif adapters:
        whole["language"] = merge(whole["language"], adapters, config.lora)
    naming = naming_of(open_tensors(base.directory))
    files = exported_files(base.directory, base.tokenizer)
    files |= processor_files(base.directory, base.config.vision)
    save_qwen2_vl(run_dir / "model", base.config, whole, source=base.directory, naming=naming, files=files)
    if jax.process_index() == 0 and (note := reading_note(run_dir / "model", base.tokenizer)):
        print(note, flush=True)


def merged_language(config: RunConfig, base: Base, adapters: PyTree) -> PyTree:
    """The language model as the base's directory has it, with the adapters in its weights.

    Each kernel is merged as it is read, so that there is one copy of the model beside the one that was trained on.
    """
    leaves = flatten_dict({"language": adapters})

    def merged(path: str, leaf: jax.Array) -> dict[str, jax.Array]:
        *module, name = path.split("/")
        own = {key: one for key, one in leaves.items() if name == "kernel" and [*key[:-1]] == module}
        tree = unflatten_dict({path: leaf}, sep="/")
        return flatten_dict(merge(tree, unflatten_dict(own), config.lora), sep="/")

    targets = shardings(param_shapes(base.config), base.devices, SHARDING_RULES)
    stored, _ = stored_as(config.model.param_dtype)
    return load_qwen2_vl(base.directory, param_dtype=stored, shardings=targets, convert=merged)[1]["language"]
