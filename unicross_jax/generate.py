"""Reports for studies: greedy, sampled or by beam search, with the decode loops that text models use.

Under `causal` the images are read once and the report runs on cached keys and values. Under `published` the whole
model is recomputed for each token: its "cache" are the tokens so far.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from common.generation.generate import PROGRAMS, DecodeSettings, decode
from common.generation.loop import Generated
from common.models.attention import Past
from common.models.decoding import Forward, Prompts
from common.types import PyTree
from unicross_jax.model import Net, Studies, UniCrossConfig, bind_report, encode_studies, output_head, report_hidden

Generator = Callable[[PyTree, PyTree, Studies, Key[Array, " B"]], Generated]


@functools.lru_cache(maxsize=PROGRAMS)
def make_generator(config: UniCrossConfig, settings: DecodeSettings, start_id: int) -> Generator:
    """The jitted program `(trainable, frozen, studies, keys) -> Generated`; the best beam where beams > 1."""

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
    forward = bind(trainable, frozen, studies, config)
    start = jnp.full((studies.images.shape[0], 1), start_id, jnp.int32)
    prompts = Prompts(start, jnp.ones(start.shape, bool))
    return decode(forward, output_head(trainable), prompts, keys, settings)


def bind(trainable: PyTree, frozen: PyTree, studies: Studies, config: UniCrossConfig) -> Forward:
    """The model with its weights and images as a `common.generation.loop.Forward`."""
    if config.conditioning == "causal":
        net = Net(trainable, frozen, config)
        return bind_report(net, encode_studies(net, studies))
    return recomputing(trainable, frozen, studies, config)


def recomputing(trainable: PyTree, frozen: PyTree, studies: Studies, config: UniCrossConfig) -> Forward:
    """A `Forward` that computes everything for each prefix. Its "keys and values" are the tokens of the prefix."""

    def forward(tokens, positions, segments=None, past: Past | None = None):
        kept = tokens[..., None, None]  # [B S K dim], as keys are
        if past is None:
            return report_hidden(trainable, frozen, studies, tokens, segments > 0, config), kept
        (batch, group), slots = tokens.shape, past.suffix.shape[-2]
        prompt = jnp.broadcast_to(past.prompt[:, None, 0, :, 0], (batch, group, past.prompt.shape[-2]))
        written = past.suffix_mask.sum(axis=-1)[..., None]
        suffix = jnp.where(jnp.arange(slots) == written, tokens[..., None], past.suffix[:, :, 0, :, 0])
        prefix = jnp.concatenate([prompt, suffix], axis=-1).reshape(batch * group, -1)
        last = (prompt.shape[-1] + written).reshape(-1, 1)
        repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, group, axis=0), studies)
        mask = jnp.arange(prefix.shape[1]) <= last
        hidden = report_hidden(trainable, frozen, repeated, jnp.where(mask, prefix, 0), mask, config)
        return jnp.take_along_axis(hidden, last[..., None], axis=1).reshape(batch, group, -1), kept

    return forward
