"""A run's model before training: its CLIP, its sizes, the tokens of its reports, its first weights."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.bounds import COUNT, check_number, check_numbers
from common.data.readers import ImageStudy
from common.errors import UserError
from common.io.terminal import say
from common.types import PyTree
from unicross_jax.backbone import Backbone, ReportTokenizer, frozen_tree, model_config
from unicross_jax.config import RunConfig
from unicross_jax.data import CONDITION_TOKENS, Example, encode_studies
from unicross_jax.model import UniCrossConfig, init_trainable

PUBLISHED_RESIZE, PUBLISHED_SIDE = 256, 224  # of the published recipe; a smaller share of an image is not learned from


class Task(NamedTuple):
    """A run's model before training: the CLIP it stands on, its sizes, the tokens of reports, and the frozen tree."""

    backbone: Backbone
    model: UniCrossConfig
    tokenizer: ReportTokenizer
    frozen: PyTree


def check_config(config: RunConfig) -> None:
    """Raise UserError for a number out of its bounds."""
    check_numbers(config)
    check_number("data.train_size", config.data.train_size, COUNT)


def check_sizes(config: RunConfig, backbone: Backbone, *, trained: bool = False) -> None:
    """Raise UserError where the config does not fit the CLIP.

    Of a model that is `trained` already, that it sees little of each image is only said.
    """
    sizes = backbone.config
    resize, side = config.data.resize, sizes.image_size
    most = side * PUBLISHED_RESIZE // PUBLISHED_SIDE
    if resize < side:
        raise UserError(f"data.resize: {resize} pixels, and this CLIP sees {side}; give {side} to {most}")
    if resize > most:
        problem = (
            f"data.resize: of {resize} pixels this CLIP sees a square of {side}, {(side / resize) ** 2:.0%} of a "
            "square image"
        )
        if not trained:
            raise UserError(f"{problem}; give {side} to {most}")
        say(f"warning: {problem}; a model trained with --data.resize {side} to {most} sees more", error=True)
    if config.max_length - 1 > sizes.context_length:
        raise UserError(
            f"max_length: {config.max_length} tokens, and this CLIP reads at most {sizes.context_length} and an end; "
            f"give at most {sizes.context_length + 1}"
        )
    if sizes.text_width % (4 * config.model.heads) or sizes.text_width % config.model.heads:
        raise UserError(
            f"model.heads: {config.model.heads} heads do not divide the width {sizes.text_width} into multiples of 4"
        )


def make_task(config: RunConfig, backbone: Backbone, tokenizer: ReportTokenizer) -> Task:
    """The model of a config. Raises UserError where vocabulary and CLIP do not fit."""
    model = model_config(config, backbone, tokenizer)
    return Task(backbone, model, tokenizer, frozen_tree(backbone, tokenizer, model))


def encode(config: RunConfig, task: Task, studies: Sequence[ImageStudy]) -> tuple[list[Example], int]:
    """Examples for the model of a config, and how many reports were cut."""
    return encode_studies(
        studies,
        task.tokenizer,
        task.backbone.tokenizer,
        prompt=config.model.prompt,
        max_length=config.max_length,
        condition_length=min(CONDITION_TOKENS, task.model.clip.context_length),
    )


def first_weights(config: RunConfig, task: Task) -> PyTree:
    """Random weights (`init_trainable`); those of the logits as `logit_init_scale` says."""
    trainable = init_trainable(task.model, jax.random.key(config.seed))
    if not config.model.logit_init_scale:
        return trainable
    kernel = config.model.logit_init_scale * jnp.asarray(task.frozen["report_embedding"], jnp.float32)
    return trainable | {"logits": trainable["logits"] | {"kernel": kernel}}
