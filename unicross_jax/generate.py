"""Reports for studies: greedy, sampled or by beam search, with the engine that text models use.

Under `causal` the images are read once and the report runs on cached keys and values. Under `published` the whole
model is recomputed for each token: its "cache" are the tokens so far, and its context the images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from common.generation.generate import PROGRAMS
from common.generation.loop import Generated, prefill
from common.generation.settings import DecodeSettings
from common.generation.slots import Slots, decode, make_slots
from common.models.attention import Past
from common.models.attention_choice import Shape, Use
from common.models.clip import attention_use
from common.models.decoding import Decoder, Forward, Prefilled, Prompts
from common.training.parallel import DeviceLayout
from common.types import PyTree
from unicross_jax.model import (
    Net,
    Studies,
    UniCrossConfig,
    bind_report,
    encode_studies,
    output_head,
    report_context,
    report_hidden,
)

Generator = Callable[[PyTree, PyTree, Studies, Key[Array, " B"]], Generated]


@functools.lru_cache(maxsize=PROGRAMS)
def report_decoder(config: UniCrossConfig, start_id: int) -> Decoder:
    """The model for generation. Weights are (trainable, frozen), prompts `Studies`; reports begin with `start_id`."""
    if config.conditioning == "published":
        return recomputing_decoder(config, start_id)

    def bound(weights: tuple[PyTree, PyTree]) -> Net:
        trainable, frozen = weights
        return Net(trainable, frozen, config)

    def read(weights: tuple[PyTree, PyTree], studies: Studies) -> Prefilled:
        net = bound(weights)
        context = report_context(net, encode_studies(net, studies))
        return prefill(bind_report(net, context), _starts(studies, start_id)).replace(context=context)

    return Decoder(
        read,
        lambda weights: bind_report(bound(weights)),
        lambda weights: output_head(weights[0]),
        attention=lambda _: attention_uses(config),
    )


def recomputing_decoder(config: UniCrossConfig, start_id: int) -> Decoder:
    """The model of either conditioning, computed anew for each prefix."""

    def read(weights: tuple[PyTree, PyTree], studies: Studies) -> Prefilled:
        forward = recomputing(weights, config, studies)
        return prefill(forward, _starts(studies, start_id)).replace(context=_as_context(studies))

    return Decoder(
        read,
        lambda weights: recomputing(weights, config),
        lambda weights: output_head(weights[0]),
        attention=lambda _: attention_uses(config),
    )


def attention_uses(config: UniCrossConfig) -> list[Use]:
    """Where the model attends."""
    report = Shape(config.clip.context_length, config.clip.context_length, config.width // config.heads, "float32")
    return [attention_use(config.clip), Use("decoder", "clip", [report])]


def _starts(studies: Studies, start_id: int) -> Prompts:
    start = jnp.full((studies.images.shape[0], 1), start_id, jnp.int32)
    return Prompts(start, jnp.ones(start.shape, bool))


@functools.lru_cache(maxsize=PROGRAMS)
def report_slots(
    config: UniCrossConfig, settings: DecodeSettings, start_id: int, count: int, layout: DeviceLayout
) -> Slots:
    """The programs of the model (`make_slots`); asked for again they are the same."""
    return make_slots(report_decoder(config, start_id), settings, count, layout)


@functools.lru_cache(maxsize=PROGRAMS)
def make_generator(config: UniCrossConfig, settings: DecodeSettings, start_id: int) -> Generator:
    """The jitted program `(trainable, frozen, studies, keys) -> Generated` for all studies at once."""

    @jax.jit
    def run(trainable: PyTree, frozen: PyTree, studies: Studies, keys: Key[Array, " B"]) -> Generated:
        return generated(trainable, frozen, studies, keys, config, settings, start_id)

    return run


def generated(
    trainable: PyTree,
    frozen: PyTree,
    studies: Studies,
    keys: Key[Array, " B"],
    config: UniCrossConfig,
    settings: DecodeSettings,
    start_id: int,
) -> Generated:
    """The reports of studies, as a pure function; `start_id` is the token that every report begins with."""
    return decode(report_decoder(config, start_id), (trainable, frozen), studies, keys, settings)


def recomputing(weights: tuple[PyTree, PyTree], config: UniCrossConfig, known: Any = None) -> Forward:
    """A `Forward` that computes everything for each prefix. Its "keys and values" are the tokens of the prefix.

    The studies are those given, or those that each `Past` has with it.
    """

    def forward(tokens, positions, segments=None, past: Past | None = None):
        kept = tokens[..., None, None]  # [B S K dim], as keys are
        if past is None:
            return report_hidden(*weights, known, tokens, segments > 0, config), kept
        (batch, group, places), prompt = past.suffix_mask.shape, past.prompt[:, 0, :, 0]
        window = tokens.shape[1] // group
        held = past.suffix_mask.sum(axis=-1)[..., None]
        behind = jnp.arange(places) - held  # of each place of the cache, in the window
        own = jnp.take_along_axis(tokens.reshape(batch, group, window), jnp.clip(behind, 0, window - 1), axis=-1)
        suffix = jnp.where(behind >= 0, own, past.suffix[:, :, 0, :, 0])
        prompt = jnp.broadcast_to(prompt[:, None], (batch, group, prompt.shape[-1]))
        prefix = jnp.repeat(jnp.concatenate([prompt, suffix], axis=-1).reshape(batch * group, -1), window, axis=0)
        last = (prompt.shape[-1] + held + jnp.arange(window)).reshape(-1, 1)
        studies = jax.tree.map(lambda leaf: jnp.repeat(leaf, group * window, axis=0), _of_context(past.context))
        mask = jnp.arange(prefix.shape[1]) <= last
        hidden = report_hidden(*weights, studies, jnp.where(mask, prefix, 0), mask, config)
        return jnp.take_along_axis(hidden, last[..., None], axis=1).reshape(*tokens.shape, -1), kept

    return forward


def _as_context(studies: Studies) -> Studies:
    """With three axes behind that of the rows in every leaf."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], *[1] * (4 - leaf.ndim), *leaf.shape[1:]), studies)


def _of_context(context: Studies) -> Studies:
    """The inverse."""
    return Studies(
        context.images, context.view_mask[:, 0, 0], context.condition[:, 0, 0], context.condition_end[:, 0, 0, 0]
    )
