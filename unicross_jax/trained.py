"""A model that has been trained: its weights from a run directory or an exported model, and how they are exported."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict

from common.config import read_config, to_json
from common.data.tokenizers import WordTokenizer, save_words
from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.locks import warn_of_writer
from common.io.safetensors import (
    NameMap,
    Published,
    load_tree,
    open_tensors,
    published_tensors,
    write_json,
    write_tensors,
)
from common.options import flag
from common.training.checkpoint import has_checkpoints, open_checkpoints, restore_trainable
from common.training.parallel import device_put_tree, generation_layout
from common.types import PyTree
from unicross_jax.backbone import (
    BASE_FILE,
    Backbone,
    ReportTokenizer,
    base_note,
    check_base,
    frozen_weights,
    load_backbone,
    load_words,
)
from unicross_jax.config import EMBEDDED_RUN, RunConfig
from unicross_jax.model import init_trainable
from unicross_jax.task import Task, check_config, check_sizes, make_task

VOCABULARY_FILE = "vocabulary.json"
# Settings of a model that may change when it is trained further.
FREE_OF_INITIAL = frozenset({"clip", "clip_vocabulary", "dropout", "adapter_dropout", "logit_init_scale", "prompt"})


class Trained(NamedTuple):
    """A model whose weights have been read; `step` is that of the best checkpoint, None of an exported model."""

    config: RunConfig
    task: Task
    trainable: PyTree
    step: int | None


def load_trained(directory: Path) -> Trained:
    """The best weights of a run directory, or an exported model. Raises UserError where they do not fit."""
    config = dataclasses.replace(read_config(RunConfig, directory), parallel="jit")
    check_config(config)
    backbone = load_backbone(config.model, config.seed)
    check_sizes(config, backbone, trained=True)
    return load_around(directory, config, backbone)


def load_around(directory: Path, config: RunConfig, backbone: Backbone) -> Trained:
    """As `load_trained`, around a CLIP that has been read already; `config` is that of the directory."""
    tokenizer: ReportTokenizer = backbone.tokenizer
    if config.vocabulary.kind == "words":
        tokenizer = load_words(directory / VOCABULARY_FILE)
    task = make_task(config, backbone, tokenizer)
    key = jax.random.key(config.seed)
    warn_of_writer(directory)
    if has_checkpoints(directory):
        checkpoints = open_checkpoints(directory, frozen_weights(backbone, task.frozen).note(), config)
        step, trainable = restore_trainable(
            checkpoints, device_put_tree(init_trainable(task.model, key), generation_layout(mode="jit"))
        )
        checkpoints.close()
        return Trained(config, task, trainable, step)
    if not (directory / "model.safetensors").is_file():
        raise UserError(f"{directory}: contains no checkpoint and no model.safetensors; train first")
    check_base(directory, backbone)
    shapes = jax.eval_shape(lambda: init_trainable(task.model, key))
    return Trained(config, task, load_tree(open_tensors(directory), shapes, own_names(shapes), where=directory), None)


def load_initial(config: RunConfig, backbone: Backbone) -> Trained | None:
    """The model that a run begins from, None where it begins from random weights.

    Raises UserError where it is of another kind than the config's, as it would mean something else there.
    """
    if not config.init_from:
        return None
    directory = initial_directory(config)
    theirs = dataclasses.replace(read_config(RunConfig, directory), parallel="jit")
    own, other = (
        {**flatten_dict(to_json(one)["model"], sep="."), "vocabulary.kind": one.vocabulary.kind}
        for one in (config, theirs)
    )
    for name in own.keys() - FREE_OF_INITIAL:
        if own[name] != other[name]:
            option = name if name.startswith("vocabulary") else f"model.{name}"
            raise UserError(
                f"init_from: {directory} was trained with {option} {other[name]}, and this run has {own[name]}; give "
                f"{flag(option)} {other[name]}"
            )
    return load_around(directory, theirs, backbone)


def initial_directory(config: RunConfig) -> Path:
    """Where the weights are that a run begins from: of a run that ended, what it exported."""
    directory = EMBEDDED_RUN if config.init_from == "embedded" else Path(config.init_from)
    return directory / "model" if (directory / "model").is_dir() else directory


def export(config: RunConfig, task: Task, trainable: PyTree, directory: Path) -> None:
    """Write what `unicross report` needs beside CLIP: config, vocabulary and trained weights (safetensors)."""
    with atomic_directory(directory) as aside:
        if jax.process_index() == 0:
            write_json(aside / "config.json", to_json(config))
            write_json(aside / BASE_FILE, base_note(task.frozen["clip"]))
            if isinstance(task.tokenizer, WordTokenizer):
                save_words(aside / VOCABULARY_FILE, task.tokenizer)
        write_tensors(aside, published_tensors(trainable, own_names(trainable)))


def own_names(trainable: PyTree) -> NameMap:
    """Tensors named as the leaves of the tree are."""
    return {path: Published((path,)) for path in flatten_dict(trainable, sep="/")}
