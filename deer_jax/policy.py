"""Text models as policies: prompts that are tokens, a group of samples that shares its prompt in every program."""

import dataclasses

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
from common.types import PyTree
from deer_jax.ditpo import Policy, PolicyParams


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

    def logprobs(
        params: PolicyParams, prompts: Prompts, tokens: Int[Array, "B G T"], mask: Bool[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        own = variables(params)
        rows, positions = shared_rows(prompts, tokens, mask)
        read: Array = Qwen2(config).apply(own, rows, positions, SharedPrompt(prompts.mask, mask))[0]
        before = hidden_before(read, prompts.mask.shape[1], tokens.shape)
        return group_logprobs(before, output_head(own["params"]), tokens, mask, settings, chunk, "lora" not in own)

    return Policy(sample, logprobs)


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


def group_logprobs(
    before: Float[Array, "B G T D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, "B G T"],
    mask: Bool[Array, "B G T"],
    settings: DecodeSettings,
    chunk: int,
    head_trained: bool,
) -> Float[Array, "B G T"]:
    """Log-probabilities under the distribution that is sampled from: after temperature and forbidden ids.

    At temperature 0 tokens are chosen without chance; they are scored at temperature 1, as
    `common.generation.sampling` does.
    """
    batch, group, length = tokens.shape
    flat = (batch, group * length)
    logp = token_logprobs(
        before.reshape(*flat, -1) / (settings.sampling.temperature or 1.0),
        head,
        tokens.reshape(flat),
        wanted=mask.reshape(flat),
        chunk=chunk,
        head_trained=head_trained,
        forbidden=settings.forbidden(head.shape[0]),
    )
    return logp.reshape(tokens.shape)
