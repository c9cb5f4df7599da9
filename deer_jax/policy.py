"""Text models as policies: prompts that are tokens, a group of samples that shares its prompt in every program."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from common.generation.drafts import NO_DRAFTS, Drafts
from common.generation.generate import qwen2_decoder
from common.generation.loop import Generated
from common.generation.settings import DecodeSettings
from common.generation.slots import decode
from common.models.attention import SharedPrompt
from common.models.decoding import Prompts
from common.models.lora import LoraConfig
from common.models.qwen2 import SHARDING_RULES, Qwen2, Qwen2Config, output_head
from common.training.losses import token_logprobs
from common.training.parallel import gathered
from common.training.sft import model_variables
from common.training.token_statistics import token_statistics
from common.types import PyTree
from deer_jax.ditpo import Policy, PolicyParams, Sample


def text_policy(
    config: Qwen2Config, settings: DecodeSettings, lora: LoraConfig | None = None, chunk: int = 128
) -> Policy:
    """A Qwen2 that continues prompts of tokens (`common.generation.loop.Prompts`).

    What is trained are LoRA adapters, where `frozen` holds a base under "params", else the whole model. `settings`
    gives temperature, stop ids and forbidden ids, for sampling and scoring alike; its `group` is not used.
    """
    adapters = lora or LoraConfig()

    def variables(params: PolicyParams) -> PyTree:
        return model_variables(params.trainable, params.frozen, adapters)

    def sample(
        params: PolicyParams, prompts: Prompts, keys: Key[Array, " B"], group: int, drafts: Drafts = NO_DRAFTS
    ) -> Generated:
        own = variables(params)
        own = {**own, "params": gathered(own["params"], config.dtype, SHARDING_RULES)}
        return decode(qwen2_decoder(config), own, prompts, keys, dataclasses.replace(settings, group=group), drafts)

    def scored(params: PolicyParams, prompts: Prompts, tokens: Array, mask: Array) -> Scored:
        own = variables(params)
        rows, positions = shared_rows(prompts, tokens, mask)
        read: Array = Qwen2(config).apply(own, rows, positions, SharedPrompt(prompts.mask, mask))[0]
        before = hidden_before(read, prompts.mask.shape[1], tokens.shape)
        return Scored(before, output_head(own["params"]), "lora" not in own)

    return make_policy(sample, scored, settings, chunk)


def shared_rows(
    prompts: Prompts, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
) -> tuple[Int[Array, "B N"], Int[Array, "B N"]]:
    """Tokens and positions of rows that hold a prompt once and then its continuations (`SharedPrompt`)."""
    batch, group, length = tokens.shape
    count = prompts.mask.sum(-1)
    read = jnp.maximum(jnp.cumsum(prompts.mask, axis=-1) - 1, 0)
    new = jnp.broadcast_to(count[:, None, None] + jnp.arange(length), tokens.shape)
    flat = (batch, group * length)
    rows = jnp.concatenate([prompts.tokens, jnp.where(mask, tokens, 0).reshape(flat)], axis=1)
    return rows, jnp.concatenate([read, new.reshape(flat)], axis=1)


def hidden_before(hidden: Float[Array, "B N D"], prompt: int, shape: tuple[int, ...]) -> Float[Array, "B G T D"]:
    """The hidden state from which each continuation token was chosen: the prompt's last, then its predecessor's."""
    batch, group, length = shape
    own = hidden[:, prompt:].reshape(batch, group, length, -1)
    first = jnp.broadcast_to(hidden[:, None, prompt - 1 : prompt], (batch, group, 1, hidden.shape[-1]))
    return jnp.concatenate([first, own[:, :, :-1]], axis=2)


class Scored(NamedTuple):
    """What a model makes of continuations: the distribution of each token is softmax(before @ head.T)."""

    before: Float[Array, "B G T D"]
    head: Float[Array, "V D"]
    head_trained: bool


def make_policy(sample: Sample, scored: Callable[..., Scored], settings: DecodeSettings, chunk: int) -> Policy:
    """A policy of a model whose hidden states `scored(params, prompts, tokens, mask)` gives.

    Log-probabilities are those under the distribution that is sampled from: after temperature and forbidden ids. At
    temperature 0 tokens are chosen without chance; they are scored at temperature 1, as `common.generation.sampling`
    does. `chunk` positions of each row have logits at a time.
    """

    def over_rows(of_tokens: Callable[..., Any]) -> Callable[..., Any]:
        def of_groups(
            params: PolicyParams, prompts: PyTree, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
        ) -> Any:
            own = scored(params, prompts, tokens, mask)
            batch, group, length = tokens.shape
            flat = (batch, group * length)
            found = of_tokens(
                own.before.reshape(*flat, -1) / (settings.sampling.temperature or 1.0),
                own.head,
                tokens.reshape(flat),
                wanted=mask.reshape(flat),
                chunk=chunk,
                head_trained=own.head_trained,
                forbidden=settings.forbidden(own.head.shape[0]),
            )
            return jax.tree.map(lambda leaf: leaf.reshape(tokens.shape), found)

        return of_groups

    return Policy(sample, over_rows(token_logprobs), over_rows(token_statistics))
